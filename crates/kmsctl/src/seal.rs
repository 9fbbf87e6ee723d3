//! `transit-kmsctl seal`: seals a payload for a node.

use std::path::{Path, PathBuf};

use clap::Args;
use sealed_payload::{MAX_CONTENT_BYTES, NodePublicKey};

use crate::{
    command_error::CommandError,
    files::{self, Output},
};

/// The longest file with a public key or a certificate.
const MAX_KEY_BYTES: usize = 64 * 1024;

/// Seals a payload, so that only one node can read it
///
/// The payload is encrypted with a new AES-256-GCM key, and this key with the RSA key of the node. Any courier may carry
/// the result: it can neither read it nor change it without the node noticing. The node opens it with the private key
/// that `transit-kms keygen` made there.
///
/// The result is CMS in PEM, which `openssl cms` can also make; see docs/auth/trusted-introduction.md. It does not prove
/// who sealed it: everyone who has the public key can seal.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes:
  0   success
  64  the key or the content cannot be used
  71  a file cannot be read or written

Examples:
  transit-kmsctl seal --to node.pub --in secret-id --out secret-id.pem
  vault write -f -field=secret_id auth/approle/role/transit-kms/secret-id | transit-kmsctl seal --to node.pub")]
pub(crate) struct SealArgs {
    /// The file with the content, of 1 to 4096 bytes. With -, it is read from standard input
    #[arg(long = "in", value_name = "PATH", default_value = "-")]
    input: PathBuf,

    /// The file for the sealed payload, with mode 0600. With -, it is printed
    #[arg(long, value_name = "PATH", default_value = "-")]
    out: PathBuf,

    /// The file with the public key of the node, as `transit-kms keygen` prints it, or with a certificate of the key
    #[arg(long, value_name = "PATH")]
    to: PathBuf,
}

/// Seals the payload.
pub(crate) fn run(args: &SealArgs) -> Result<(), CommandError> {
    let key = read_key(&args.to)?;
    let output = Output::prepare(&args.out)?;
    let content = files::read(&args.input, MAX_CONTENT_BYTES)?;
    output.write(key.seal(&content)?.as_bytes())
}

/// Reads the public key of a node.
pub(crate) fn read_key(path: &Path) -> Result<NodePublicKey, CommandError> {
    let text = files::read(path, MAX_KEY_BYTES)?;
    NodePublicKey::from_pem(&text).map_err(|source| CommandError::Key { path: path.to_owned(), source })
}
