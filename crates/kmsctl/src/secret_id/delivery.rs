//! What a node gets, in the formats that transit-kms reads.
//!
//! | delivery of the node | content of the file |
//! | --- | --- |
//! | `plain` | the secret_id alone |
//! | `wrapped` | JSON with `wrap_info.token`, as `vault write -wrap-ttl -format=json` prints it |
//! | `cubbyhole` | JSON with `token` and `path`; the cubbyhole has `secret_id`, or `wrap_info` |
//! | `sealed` | a sealed payload with the content of `plain` or of `wrapped` |

use std::fmt::Display;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::{command_error::CommandError, vault::SecretText};

/// A new secret_id, wrapped or not.
#[derive(Deserialize)]
pub(super) struct IssuedSecretId {
    data: Option<PlainSecretId>,
    wrap_info: Option<WrapInfo>,
}

#[derive(Deserialize)]
struct PlainSecretId {
    secret_id: SecretText,
    secret_id_accessor: Option<String>,
    secret_id_num_uses: Option<u64>,
    secret_id_ttl: Option<u64>,
}

/// The part of an answer that Vault gives instead of the data of a wrapped response. All of its fields are delivered.
#[derive(Deserialize, Serialize)]
struct WrapInfo {
    token: SecretText,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// The secret_id as it is delivered.
pub(super) enum Payload {
    Plain(PlainPayload),
    Wrapped(WrappedPayload),
}

/// A secret_id that is not wrapped.
pub(super) struct PlainPayload(PlainSecretId);

/// A wrapped secret_id.
pub(super) struct WrappedPayload(WrapInfo);

impl Payload {
    /// Returns what Vault has issued. `wrapped` is whether a wrap was requested.
    pub(super) fn new(issued: IssuedSecretId, wrapped: bool) -> Result<Self, CommandError> {
        match (issued, wrapped) {
            (IssuedSecretId { wrap_info: Some(info), .. }, true) => Ok(Self::Wrapped(WrappedPayload(info))),
            (IssuedSecretId { data: Some(data), .. }, false) => Ok(Self::Plain(PlainPayload(data))),
            // Delivering a secret_id in clear that should have been wrapped is worse than an error.
            _ => Err(CommandError::Failed(
                "Vault has issued a secret_id, but not in the requested form: a proxy may drop the header \
                 X-Vault-Wrap-TTL. Find it with `transit-kmsctl secret-id list`, and destroy it"
                    .into(),
            )),
        }
    }

    /// Returns the accessor of the secret_id, if Vault names it.
    pub(super) fn accessor(&self) -> Option<&str> {
        match self {
            Self::Plain(PlainPayload(data)) => data.secret_id_accessor.as_deref(),
            Self::Wrapped(WrappedPayload(info)) => info.others.get("wrapped_accessor")?.as_str(),
        }
    }

    /// Returns the remaining logins and the lifetime in seconds, if they are limited and Vault names them.
    pub(super) fn limits(&self) -> (Option<u64>, Option<u64>) {
        let limited = |value: Option<u64>| value.filter(|value| *value != 0);
        match self {
            Self::Plain(PlainPayload(data)) => {
                (limited(data.secret_id_num_uses), limited(data.secret_id_ttl))
            }
            Self::Wrapped(_) => (None, None),
        }
    }

    /// Returns the content of the file, or of the sealed payload: the secret_id alone, or the wrap as JSON.
    pub(super) fn text(&self) -> Result<Zeroizing<Vec<u8>>, CommandError> {
        match self {
            Self::Plain(PlainPayload(data)) => {
                Ok(Zeroizing::new(data.secret_id.expose().as_bytes().to_vec()))
            }
            Self::Wrapped(_) => self.json(),
        }
    }

    /// Returns the object that is written to a cubbyhole.
    pub(super) fn json(&self) -> Result<Zeroizing<Vec<u8>>, CommandError> {
        #[derive(Serialize)]
        #[serde(rename_all = "snake_case")]
        enum Field<'a> {
            SecretId(&'a SecretText),
            WrapInfo(&'a WrapInfo),
        }
        to_json(&match self {
            Self::Plain(PlainPayload(data)) => Field::SecretId(&data.secret_id),
            Self::Wrapped(WrappedPayload(info)) => Field::WrapInfo(info),
        })
    }
}

/// Where a cubbyhole is, and the token that opens it.
#[derive(Serialize)]
pub(super) struct CubbyholeReference<'a> {
    pub(super) path: &'a str,
    pub(super) token: &'a SecretText,
}

impl CubbyholeReference<'_> {
    pub(super) fn json(&self) -> Result<Zeroizing<Vec<u8>>, CommandError> {
        to_json(self)
    }
}

fn to_json(value: &impl Serialize) -> Result<Zeroizing<Vec<u8>>, CommandError> {
    // With the right capacity from the start, no part is copied and left in memory.
    let mut json = Zeroizing::new(Vec::with_capacity(4 * 1024));
    // An error of serde could contain a value, so it is not shown.
    serde_json::to_writer(&mut *json, value)
        .map_err(|_| CommandError::Failed("the answer of Vault cannot be written as JSON".into()))?;
    Ok(json)
}

/// The token of a cubbyhole.
#[derive(Deserialize)]
pub(super) struct CubbyholeToken {
    auth: CubbyholeAuth,
}

#[derive(Deserialize)]
struct CubbyholeAuth {
    client_token: SecretText,
    num_uses: Option<u64>,
}

impl CubbyholeToken {
    /// Returns the token, if it has exactly this number of uses.
    pub(super) fn with_uses(self, expected: u64) -> Result<SecretText, CommandError> {
        match self.auth.num_uses {
            Some(uses) if uses == expected => Ok(self.auth.client_token),
            uses => Err(CommandError::Failed(format!(
                "the token for the cubbyhole has {} uses and needs exactly {expected}: one to write, one to read. If \
                 --token-role names a role, set its token_num_uses to 0 or {expected}, and its token_type to service",
                uses.map_or_else(|| "an unknown number of".to_owned(), |uses| uses.to_string()),
            ))),
        }
    }
}

/// Adds what to do about a secret_id that was issued and cannot be delivered.
pub(super) fn undelivered(role: &str, accessor: Option<&str>, error: &impl Display) -> CommandError {
    let what = accessor.map_or_else(
        || format!("find it with `transit-kmsctl secret-id list --role {role}`, and destroy it"),
        |accessor| {
            format!("destroy it: `transit-kmsctl secret-id destroy --role {role} --accessor {accessor}`")
        },
    );
    CommandError::Failed(format!("a secret_id was issued, and cannot be delivered: {error}. {what}"))
}
