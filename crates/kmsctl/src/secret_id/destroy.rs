//! `transit-kmsctl secret-id destroy`: no login with a secret_id any more.

use std::io::{self, Write};

use clap::{ArgGroup, Args};
use serde_json::json;

use super::{EXIT_CODES, RoleArgs, list::secret_ids};
use crate::{
    command_error::CommandError,
    vault::{Vault, VaultRequest},
};

/// Destroys one secret_id, or all of a node
///
/// A login with it is refused immediately. Tokens of earlier logins stay valid until they expire: to cut off a stolen
/// node at once, also revoke them, for example by the accessors in Vault's audit log.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES, group = ArgGroup::new("which").required(true).args(["accessor", "node"]))]
pub(super) struct DestroyArgs {
    /// The accessor of the secret_id, as `list` prints it
    #[arg(long, value_name = "ACCESSOR")]
    accessor: Option<String>,

    /// The node. All of its secret_ids are destroyed, including a newly issued one
    #[arg(long, value_name = "NAME", value_parser = super::parse_node)]
    node: Option<String>,

    #[command(flatten)]
    role: RoleArgs,
}

/// Destroys the secret_ids, and prints their accessors.
pub(super) async fn run(args: &DestroyArgs) -> Result<(), CommandError> {
    let vault = args.role.vault.connect()?;
    if let Some(accessor) = &args.accessor {
        return destroy(&vault, &args.role, accessor).await;
    }
    let found = secret_ids(&vault, &args.role).await?;
    let mut count = 0;
    for listed in found.iter().filter(|listed| listed.node == args.node) {
        destroy(&vault, &args.role, &listed.accessor).await?;
        count += 1;
    }
    if count == 0 {
        let node = args.node.as_deref().unwrap_or_default();
        return Err(CommandError::Failed(format!(
            "the role {} has no secret_id of the node {node}: `transit-kmsctl secret-id list` shows the names of nodes",
            args.role.role
        )));
    }
    Ok(())
}

async fn destroy(vault: &Vault, role: &RoleArgs, accessor: &str) -> Result<(), CommandError> {
    let path = role.path("secret-id-accessor/destroy");
    vault.change(VaultRequest::post(path, &json!({"secret_id_accessor": accessor}))).await?;
    // It is destroyed, whether or not this line can be printed.
    drop(writeln!(io::stdout(), "destroyed {accessor}"));
    Ok(())
}
