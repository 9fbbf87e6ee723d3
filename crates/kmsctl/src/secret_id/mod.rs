//! `transit-kmsctl secret-id`: the secret_ids of nodes, for the requestor of the trusted introduction.
//!
//! docs/auth/trusted-introduction.md has the flow, and the formats of what is delivered.

mod delivery;
mod destroy;
mod issue;
mod list;

use clap::{Args, Subcommand};

use crate::{
    command_error::CommandError,
    vault::{ApiPath, VaultArgs},
};

/// The metadata key of a secret_id that holds the name of its node.
const NODE: &str = "node";

const EXIT_CODES: &str = "\
Exit codes:
  0   success
  1   Vault refuses the request, or there is no such secret_id
  2   Vault does not answer
  64  an argument, the token or the key cannot be used
  71  a file cannot be read or written";

/// Issues, lists and destroys the AppRole secret_ids of nodes
///
/// A node logs in with a role_id and a secret_id. The role_id is part of its deployment, and the secret_id is delivered
/// by another hand, so neither is enough alone. These commands are for the requestor, who is trusted with secret_ids.
/// The courier who carries them needs no access to Vault.
///
/// docs/auth/trusted-introduction.md has the flow, and what a courier can do with each form of delivery.
/// manifests/vault/trusted-introduction/ has the policies.
#[derive(Args, Debug)]
pub(crate) struct SecretIdArgs {
    #[command(subcommand)]
    command: SecretIdCommand,
}

#[derive(Debug, Subcommand)]
enum SecretIdCommand {
    Destroy(destroy::DestroyArgs),
    Issue(Box<issue::IssueArgs>),
    List(list::ListArgs),
}

/// The role whose secret_ids are meant.
#[derive(Args, Debug)]
struct RoleArgs {
    /// The path of the AppRole method below auth/
    #[arg(long, value_name = "PATH", default_value = "approle", value_parser = parse_mount)]
    mount: String,

    /// The name of the role
    #[arg(long, value_name = "NAME", value_parser = parse_role)]
    role: String,

    #[command(flatten)]
    vault: VaultArgs,
}

impl RoleArgs {
    /// A path below the role.
    fn path(&self, below: &str) -> ApiPath {
        ApiPath::new(&["auth", &self.mount, "role", &self.role, below])
    }
}

/// Runs the command.
pub(crate) async fn run(args: SecretIdArgs) -> Result<(), CommandError> {
    match args.command {
        SecretIdCommand::Destroy(args) => destroy::run(&args).await,
        SecretIdCommand::Issue(args) => issue::run(&args).await,
        SecretIdCommand::List(args) => list::run(&args).await,
    }
}

/// Accepts `approle`, `auth/approle` and `auth/team/approle/`.
fn parse_mount(text: &str) -> Result<String, String> {
    let path = text.trim_matches('/');
    let path = path.strip_prefix("auth/").unwrap_or(path);
    path.split('/').try_for_each(check_segment)?;
    Ok(path.to_owned())
}

fn parse_role(text: &str) -> Result<String, String> {
    if text.contains('/') {
        return Err("the name of a role has no slash; pass the path of the method with --mount".into());
    }
    check_segment(text)?;
    Ok(text.to_owned())
}

/// Accepts what can be one segment of a path.
fn check_segment(text: &str) -> Result<(), String> {
    if text.is_empty()
        || text == "."
        || text == ".."
        || text.chars().any(|c| c.is_control() || c.is_whitespace())
    {
        return Err("it is empty, a dot, or contains a space".into());
    }
    Ok(())
}

/// Accepts the name of a node: it becomes metadata of the secret_id and of the tokens.
fn parse_node(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._:/@".contains(c);
    if text.is_empty() || text.len() > 253 || !text.chars().all(is_plain) {
        return Err("a name of a node has 1 to 253 letters, digits or characters of -._:/@".into());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_a_path_below_auth() {
        for same in ["approle", "auth/approle", "/approle/", "auth/approle/"] {
            assert_eq!(parse_mount(same).unwrap(), "approle");
        }
        assert_eq!(parse_mount("team/approle").unwrap(), "team/approle");
        for bad in ["", "/", "a//b", "a/../sys", "a b", "auth/."] {
            assert!(parse_mount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_roles_and_nodes_are_checked() {
        assert!(parse_role("transit-kms").is_ok() && parse_node("cp-1.example.com").is_ok());
        for bad in ["", "..", "a/b", "a b"] {
            assert!(parse_role(bad).is_err(), "{bad}");
        }
        for bad in ["", "a b", "a\nb", "a\"b", &"x".repeat(254)] {
            assert!(parse_node(bad).is_err(), "{bad}");
        }
    }
}
