//! `transit-kmsctl secret-id issue`: a new secret_id, in the form in which it is delivered.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{ArgGroup, Args};
use kms_plugin::cli::parse_timeout;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    EXIT_CODES, NODE, RoleArgs,
    delivery::{CubbyholeReference, CubbyholeToken, IssuedSecretId, Payload, undelivered},
    parse_node,
};
use crate::{
    command_error::CommandError,
    files::Output,
    seal::read_key,
    vault::{ApiPath, SecretText, Vault, VaultRequest},
};

/// The path in the cubbyhole, and the one that the policy of its token allows.
const CUBBYHOLE_PATH: &str = "cubbyhole/transit-kms";
/// The requestor writes the cubbyhole, and the node reads it.
const CUBBYHOLE_USES: u64 = 2;

/// The forms of the output, for the help.
const FORMS: &str = "\
The node reads the output with this setting:
  without a flag   delivery: plain      the secret_id
  --wrap           delivery: wrapped    a token that yields the secret_id once
  --cubbyhole      delivery: cubbyhole  a token with one use left, and the path of its cubbyhole
  --seal           delivery: sealed     the secret_id, or the wrap, encrypted for this node";

const EXAMPLES: &str = "\
Examples:
  transit-kmsctl secret-id issue --role transit-kms --node cp-1 --seal node.pub --out secret-id.pem
  transit-kmsctl secret-id issue --role transit-kms --node cp-1 --wrap 24h";

/// Issues a secret_id for a node, and prints it in the form in which it is delivered
///
/// Without --wrap, --cubbyhole and --seal, the output is the secret_id alone: everyone who sees it can use it. With --wrap
/// or --cubbyhole, a theft is noticed. With --seal, a theft is useless. --wrap can be combined with the other two.
///
/// A wrap and a cubbyhole can be used once: after a restart, the node needs a new one. For nodes that must start without
/// an operator, use --seal without --wrap.
#[derive(Args, Debug)]
#[command(after_help = format!("{FORMS}\n\n{EXIT_CODES}\n\n{EXAMPLES}"), group = ArgGroup::new("form").args(["cubbyhole", "seal"]))]
pub(super) struct IssueArgs {
    /// An address range from which the node may log in, such as 10.0.0.5/32. May be repeated. The role must allow it
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    cidr: Vec<String>,

    /// Put the secret_id into the cubbyhole of a new token, and print the token and the path as JSON
    #[arg(long)]
    cubbyhole: bool,

    /// The only policy of the token for the cubbyhole. It must allow create, update and read of cubbyhole/transit-kms
    /// [default: the policies of --token-role, otherwise `default`]
    #[arg(long, value_name = "NAME", requires = "cubbyhole")]
    cubbyhole_policy: Option<String>,

    /// How long the cubbyhole exists
    #[arg(long, value_name = "DURATION", value_parser = parse_timeout, default_value = "10m", requires = "cubbyhole")]
    cubbyhole_ttl: Duration,

    /// The name of the node. It becomes metadata of the secret_id, and of the tokens in Vault's audit log
    #[arg(long, value_name = "NAME", value_parser = parse_node)]
    node: String,

    /// How many logins are possible, 0 for any number [default: the setting of the role]
    ///
    /// With 1, the node cannot log in after a reboot, or when its token reaches its maximum TTL.
    #[arg(long, value_name = "NUMBER")]
    num_uses: Option<u64>,

    /// The file for the output, with mode 0600. With -, it is printed
    #[arg(long, value_name = "PATH", default_value = "-")]
    out: PathBuf,

    /// Encrypt the output to the public key in this file, as `transit-kms keygen` prints it on the node
    #[arg(long, value_name = "PATH")]
    seal: Option<PathBuf>,

    /// Create the token for the cubbyhole with this token role
    ///
    /// Without it, the token is a child of yours: you need its policy too, and it ends with your token.
    #[arg(long, value_name = "NAME", requires = "cubbyhole")]
    token_role: Option<String>,

    /// How long the secret_id is valid, for example 720h [default: the setting of the role]
    #[arg(long, value_name = "DURATION", value_parser = parse_timeout)]
    ttl: Option<Duration>,

    /// Wrap the secret_id in a token that can be used once within this time, for example 24h
    #[arg(long, value_name = "DURATION", value_parser = parse_wrap_ttl)]
    wrap: Option<Duration>,

    // Last, because its heading in the help also counts for the arguments after it.
    #[command(flatten)]
    role: RoleArgs,
}

/// Vault counts in seconds, and without one it would not wrap.
fn parse_wrap_ttl(text: &str) -> Result<Duration, String> {
    let ttl = parse_timeout(text)?;
    if ttl < Duration::from_secs(1) { Err("must be at least 1s".into()) } else { Ok(ttl) }
}

/// Issues the secret_id.
pub(super) async fn run(args: &IssueArgs) -> Result<(), CommandError> {
    // Everything that can fail without Vault comes first, so that no secret_id is issued in vain.
    let key = args.seal.as_deref().map(read_key).transpose()?;
    let output = Output::prepare(&args.out)?;
    let vault = args.role.vault.connect()?;
    let cubbyhole = if args.cubbyhole { Some(cubbyhole_token(&vault, args).await?) } else { None };

    let request =
        VaultRequest::post(args.role.path("secret-id"), &secret_id_options(args)).wrapped(args.wrap);
    let issued = vault.call::<IssuedSecretId>(request).await?;
    let payload = Payload::new(issued, args.wrap.is_some())?;
    let result = match (&key, &cubbyhole) {
        (Some(key), _) => Zeroizing::new(key.seal(&payload.text()?)?.into_bytes()),
        (None, Some(token)) => {
            let mut json = put_into_cubbyhole(&vault, &args.role.role, token, &payload).await?;
            json.push(b'\n');
            json
        }
        (None, None) => {
            let mut text = payload.text()?;
            text.push(b'\n');
            text
        }
    };
    let role = &args.role.role;
    output.write(&result).map_err(|error| undelivered(role, payload.accessor(), &error))?;
    describe(args, &payload);
    Ok(())
}

fn secret_id_options(args: &IssueArgs) -> Value {
    // Vault wants the metadata as a text with JSON.
    let mut options = json!({"metadata": json!({NODE: args.node}).to_string()});
    let mut set = |name: &str, value: Value| {
        if let Some(options) = options.as_object_mut() {
            options.insert(name.to_owned(), value);
        }
    };
    if !args.cidr.is_empty() {
        set("cidr_list", args.cidr.clone().into());
    }
    if let Some(uses) = args.num_uses {
        set("num_uses", uses.into());
    }
    if let Some(ttl) = args.ttl {
        set("ttl", format!("{}s", ttl.as_secs()).into());
    }
    options
}

async fn cubbyhole_token(vault: &Vault, args: &IssueArgs) -> Result<SecretText, CommandError> {
    let mut options = json!({
        "display_name": format!("transit-kms-{}", args.node),
        "num_uses": CUBBYHOLE_USES,
        "renewable": false,
        "ttl": format!("{}s", args.cubbyhole_ttl.as_secs()),
    });
    let policy = match (&args.cubbyhole_policy, &args.token_role) {
        (Some(policy), _) => Some(policy.as_str()),
        (None, Some(_)) => None,
        (None, None) => Some("default"),
    };
    if let (Some(policy), Some(options)) = (policy, options.as_object_mut()) {
        options.insert("policies".to_owned(), json!([policy]));
        options.insert("no_default_policy".to_owned(), (policy != "default").into());
    }
    let create = "auth/token/create";
    let path = match &args.token_role {
        Some(role) => ApiPath::new(&[create, role]),
        None => ApiPath::new(&[create]),
    };
    vault.call::<CubbyholeToken>(VaultRequest::post(path, &options)).await?.with_uses(CUBBYHOLE_USES)
}

/// Uses the token for the first time: writes the payload. Returns the JSON that tells the node where it is.
async fn put_into_cubbyhole(
    vault: &Vault,
    role: &str,
    token: &SecretText,
    payload: &Payload,
) -> Result<Zeroizing<Vec<u8>>, CommandError> {
    let header = token.to_header().map_err(|_| {
        CommandError::Failed("the token of Vault contains a character that no token has".into())
    })?;
    let request =
        VaultRequest::post_secret(ApiPath::new(&[CUBBYHOLE_PATH]), payload.json()?).with_token(header);
    vault.change(request).await.map_err(|error| undelivered(role, payload.accessor(), &error))?;
    CubbyholeReference { path: CUBBYHOLE_PATH, token }.json()
}

/// Says on standard error what was issued. Nothing of it is secret.
fn describe(args: &IssueArgs, payload: &Payload) {
    let mut lines =
        vec![format!("issued a secret_id of the role {} for the node {}", args.role.role, args.node)];
    if let Some(accessor) = payload.accessor() {
        lines.push(format!("accessor: {accessor}"));
    }
    let (uses, ttl) = payload.limits();
    if let Some(uses) = uses {
        lines.push(format!("logins: {uses}"));
    }
    if let Some(ttl) = ttl {
        lines.push(format!("valid for: {}", humantime::format_duration(Duration::from_secs(ttl))));
    }
    if let (Some(wanted), true) = (args.ttl, ttl.is_some())
        && ttl != Some(wanted.as_secs())
    {
        lines.push("the role limits the lifetime: it is not the requested one".to_owned());
    }
    let delivery = match (args.cubbyhole, args.seal.is_some(), args.wrap.is_some()) {
        (true, ..) => "cubbyhole",
        (_, true, _) => "sealed",
        (_, _, true) => "wrapped",
        _ => "plain",
    };
    lines.push(format!("the node reads it with: delivery: {delivery}"));
    if args.wrap.is_some() || args.cubbyhole {
        lines.push("it can be used once: after a restart, the node needs a new one".to_owned());
    } else if uses.is_some() {
        lines
            .push("when the logins are used up, for example by reboots, the node needs a new one".to_owned());
    }
    let target =
        if args.out == Path::new("-") { String::new() } else { format!(" in {}", args.out.display()) };
    lines.push(format!("the output{target} is for the courier"));
    drop(writeln!(io::stderr().lock(), "{}", lines.join("\n")));
}
