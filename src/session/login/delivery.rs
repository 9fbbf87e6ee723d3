//! Opens what carries a secret_id to this machine: a response wrap, a cubbyhole, or a sealed payload.
//!
//! A wrap and a cubbyhole can be opened once. The ledger notes that before the request is sent. So there are four
//! outcomes: it opens; it was opened by this machine before (spent); it was opened or forged by another hand
//! (tampered); or the answer is lost. Then a wrap is looked at again, and a cubbyhole, whose token no request may
//! look up, is spent.

use std::fmt;

use transit_client::{
    ErrorKind, TransitError,
    token::Token,
    vault::auth::{
        LoginError, LoginFailure,
        approle::{Delivered, PlainText, SecretId},
        cubbyhole, wrapping,
    },
};
use zeroize::Zeroizing;

use sealed_payload::{NodeKey, SealedPayloadError};

use super::{
    authenticator::{Identity, LoginTarget},
    credential::CredentialHash,
    credential_source::fixed_mount,
};
use crate::config::settings::auth::{AuthSettings, Delivery, MaterialFile};

/// What was delivered may lead to another delivery, such as a cubbyhole that holds a wrapping token.
const MAX_STEPS: usize = 3;

/// The number of deliveries whose contents stay in memory: those of a session and of its candidate, each with one
/// that was replaced.
const MAX_OPENED: usize = 4;

/// A secret_id that was opened.
#[derive(Clone)]
pub(super) struct OpenedDelivery {
    /// The settings that it was delivered for.
    auth: AuthSettings,
    /// Of what was delivered.
    credential: CredentialHash,
    pub(super) secret_id: SecretId,
}

/// What deliveries contained. It outlives a change of the settings: a bad config must not cost the session in use
/// the secret_id of its next login.
#[derive(Default)]
pub(super) struct OpenedDeliveries {
    secret_ids: Vec<OpenedDelivery>,
    tokens: Vec<(CredentialHash, Token)>,
}

impl OpenedDeliveries {
    fn secret_id(&self, credential: CredentialHash) -> Option<&OpenedDelivery> {
        self.secret_ids.iter().find(|opened| opened.credential == credential)
    }

    /// The last one for these settings.
    fn last_secret_id(&self, auth: &AuthSettings) -> Option<&OpenedDelivery> {
        self.secret_ids.iter().rfind(|opened| opened.auth == *auth)
    }

    fn token(&self, credential: CredentialHash) -> Option<&Token> {
        self.tokens.iter().find(|(opened, _)| *opened == credential).map(|(_, token)| token)
    }

    fn keep_secret_id(&mut self, opened: OpenedDelivery) {
        self.secret_ids.push(opened);
        self.secret_ids.drain(..self.secret_ids.len().saturating_sub(MAX_OPENED));
    }

    fn keep_token(&mut self, credential: CredentialHash, token: Token) {
        self.tokens.push((credential, token));
        self.tokens.drain(..self.tokens.len().saturating_sub(MAX_OPENED));
    }
}

/// What was delivered.
pub(super) struct DeliveryFile<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) delivery: &'a Delivery,
    /// The setting and the path, for messages.
    pub(super) name: &'a str,
    /// The name of the AppRole role, if it is configured.
    pub(super) role: Option<&'a str>,
}

/// Returns the secret_id of a delivery. It stays in memory for the next logins.
pub(super) async fn open(
    identity: &mut Identity,
    target: &LoginTarget,
    file: DeliveryFile<'_>,
) -> Result<OpenedDelivery, LoginError> {
    let credential = CredentialHash::of([file.bytes]);
    if let Some(opened) = identity.opened.secret_id(credential) {
        return Ok(opened.clone());
    }
    let failed = match identity.rejection(credential) {
        Some(known) => known,
        None => match open_steps(identity, target, &file).await {
            Ok(secret_id) => {
                let opened = OpenedDelivery { auth: target.auth.clone(), credential, secret_id };
                identity.opened.keep_secret_id(opened.clone());
                return Ok(opened);
            }
            Err(failed) if failed.failure.needs_new_credential() => identity.reject(credential, failed),
            Err(failed) => return Err(failed),
        },
    };
    match identity.opened.last_secret_id(&target.auth) {
        // During a rollout, the successor has used the delivery. The secret_id of the delivery before it may still
        // be valid, and the session in use must not end.
        Some(earlier) if failed.failure == LoginFailure::Spent => Ok(earlier.clone()),
        _ => Err(failed),
    }
}

async fn open_steps(
    identity: &mut Identity,
    target: &LoginTarget,
    file: &DeliveryFile<'_>,
) -> Result<SecretId, LoginError> {
    let DeliveryFile { bytes, delivery, name, role } = file;
    let first = match delivery {
        Delivery::Plain | Delivery::Cubbyhole => Delivered::parse(bytes, PlainText::SecretId, name),
        Delivery::Wrapped => Delivered::parse(bytes, PlainText::WrappingToken, name),
        Delivery::Sealed { private_key_file } => {
            let content = open_sealed(target, private_key_file, bytes, name)?;
            Delivered::parse(&content, PlainText::SecretId, &format!("what is sealed in {name}"))
        }
    };
    let mut delivered = first.map_err(blocked)?;
    check_form(delivery, &delivered, name)?;
    for _ in 0..MAX_STEPS {
        let opened = match &delivered {
            Delivered::SecretId(secret_id) => return Ok(secret_id.clone()),
            Delivered::Wrapped(token) => {
                let expected = expected_path(target, *role)?;
                unwrap(identity, target, token, &expected, name).await?
            }
            Delivered::Cubbyhole { path, token } => {
                read_cubbyhole(identity, target, path, token, name).await?
            }
        };
        delivered = Delivered::parse(&opened, PlainText::SecretId, &format!("what {name} leads to"))
            .map_err(|error| LoginError::new(LoginFailure::Spent, error))?;
    }
    let message =
        format!("{name} leads to a delivery in a delivery in a delivery: deliver the secret_id itself");
    Err(LoginError::new(LoginFailure::Spent, TransitError::new(ErrorKind::Config, message)))
}

/// Opens a payload that is sealed for the key of this node.
fn open_sealed(
    target: &LoginTarget,
    key_file: &MaterialFile,
    payload: &[u8],
    name: &str,
) -> Result<Zeroizing<Vec<u8>>, LoginError> {
    let config_error = |message: String| TransitError::new(ErrorKind::Config, message);
    let pem = target.config.material.get(key_file).map_err(|error| {
        let message = format!("{error}; transit-kms keygen makes it");
        blocked(config_error(message).with_source(error))
    })?;
    let key = NodeKey::from_pem(pem).map_err(|error| {
        let message = format!("{} ({}): {error}", key_file.setting, key_file.path.display());
        blocked(config_error(message).with_source(error))
    })?;
    key.open(payload).map_err(|error| {
        let failure = match error {
            SealedPayloadError::Damaged => LoginFailure::Tampered,
            _ => LoginFailure::Refused,
        };
        let message = format!("{name}: {error}");
        LoginError::new(failure, TransitError::new(ErrorKind::Denied, message).with_source(error))
    })
}

/// Returns the token that an agent's sink has wrapped.
pub(super) async fn open_token(
    identity: &mut Identity,
    target: &LoginTarget,
    bytes: &[u8],
    name: &str,
) -> Result<Token, LoginError> {
    let credential = CredentialHash::of([bytes]);
    if let Some(token) = identity.opened.token(credential) {
        return Ok(token.clone());
    }
    if let Some(known) = identity.rejection(credential) {
        return Err(known);
    }
    let opened = async {
        let delivered = Delivered::parse(bytes, PlainText::WrappingToken, name).map_err(blocked)?;
        let Delivered::Wrapped(wrapping) = delivered else {
            let message = format!(
                "{name} contains no wrapping token: it has another form than an agent's sink with wrap_ttl writes"
            );
            return Err(blocked(TransitError::new(ErrorKind::Config, message)));
        };
        let answer = unwrap(identity, target, &wrapping, &ExpectedPath::Token, name).await?;
        wrapping::token_of(&answer).map_err(|error| LoginError::new(LoginFailure::Spent, error))
    };
    match opened.await {
        Ok(token) => {
            identity.opened.keep_token(credential, token.clone());
            Ok(token)
        }
        Err(failed) if failed.failure.needs_new_credential() => Err(identity.reject(credential, failed)),
        Err(failed) => Err(failed),
    }
}

/// A delivery must have the form that the config announces: who can write the file must not choose what is done
/// with it.
fn check_form(delivery: &Delivery, delivered: &Delivered, name: &str) -> Result<(), LoginError> {
    let fits = match delivered {
        Delivered::Cubbyhole { .. } => matches!(delivery, Delivery::Cubbyhole),
        Delivered::SecretId(_) => matches!(delivery, Delivery::Plain | Delivery::Sealed { .. }),
        Delivered::Wrapped(_) => matches!(delivery, Delivery::Wrapped | Delivery::Sealed { .. }),
    };
    if fits {
        return Ok(());
    }
    let message = format!("{name} has another form than vault.auth.delivery says: correct one of them");
    Err(blocked(TransitError::new(ErrorKind::Config, message)))
}

/// Reads a cubbyhole, unless this machine has read it before. Its token cannot be looked up.
async fn read_cubbyhole(
    identity: &mut Identity,
    target: &LoginTarget,
    path: &str,
    token: &Token,
    name: &str,
) -> Result<Zeroizing<Vec<u8>>, LoginError> {
    if identity.has_consumed(token).await {
        return Err(spent(name, SECRET_ID_IN_MEMORY));
    }
    identity.consume(token).await;
    let outcome = cubbyhole::read(token, path, &target.auth.namespace, &target.context).await;
    if outcome.as_ref().is_err_and(|failed| !failed.failure.needs_new_credential()) {
        // Vault has provably not processed the request.
        identity.not_consumed(token).await;
    }
    outcome
}

/// Opens a wrapping token, if it wraps what it should.
///
/// Its lookup shows whether it was used, so a lost answer is no end: the next attempt looks again. If the token is
/// still there, Vault has not processed the request, and it can be sent again.
async fn unwrap(
    identity: &mut Identity,
    target: &LoginTarget,
    token: &Token,
    expected: &ExpectedPath,
    name: &str,
) -> Result<Zeroizing<Vec<u8>>, LoginError> {
    let namespace = &target.auth.namespace;
    let path = match wrapping::creation_path(token, namespace, &target.context).await {
        Ok(path) => path,
        Err(failed) if failed.failure != LoginFailure::Tampered => return Err(failed),
        Err(_) if identity.has_consumed(token).await => {
            return Err(spent(name, expected.after_a_restart()));
        }
        Err(failed) => {
            let message = format!(
                "the wrapping token in {name} was used by another hand, has expired or is forged: find out who had \
                 it, {}, and deliver a new one ({})",
                expected.disarm(),
                failed.error.message
            );
            let error = TransitError::new(ErrorKind::Denied, message).with_source(failed.error);
            return Err(LoginError::new(LoginFailure::Tampered, error));
        }
    };
    if !expected.matches(&path) {
        let message = format!(
            "the wrapping token in {name} wraps another answer than that of {expected}: it may be forged, and is \
             not used; deliver a new one"
        );
        return Err(LoginError::new(LoginFailure::Tampered, TransitError::new(ErrorKind::Denied, message)));
    }
    identity.consume(token).await;
    wrapping::unwrap(token, namespace, &target.context).await
}

/// The path of the request whose answer a wrapping token must wrap.
enum ExpectedPath {
    /// It creates secret_ids of the role; `None` for any role of the mount.
    SecretId { mount: String, role: Option<String> },
    /// An agent wraps the token of its sink, or a broker creates a token.
    Token,
}

const TOKEN_CREATE: &str = "auth/token/create";
/// Why a restart needs another delivery of a secret_id.
const SECRET_ID_IN_MEMORY: &str =
    "the secret_id is kept in memory only; a sealed delivery survives a restart";

impl ExpectedPath {
    fn matches(&self, path: &str) -> bool {
        let Self::SecretId { mount, role } = self else {
            return path == "sys/wrapping/wrap" || path == TOKEN_CREATE || {
                path.strip_prefix(TOKEN_CREATE).is_some_and(|role| role.starts_with('/'))
            };
        };
        let Some(rest) = path.strip_prefix(&format!("auth/{mount}/role/")) else { return false };
        let Some((found, what)) = rest.rsplit_once('/') else { return false };
        matches!(what, "secret-id" | "custom-secret-id")
            && !found.contains('/')
            && role.as_ref().is_none_or(|expected| expected.eq_ignore_ascii_case(found))
    }
}

impl ExpectedPath {
    /// What makes a stolen delivery useless.
    const fn disarm(&self) -> &'static str {
        match self {
            Self::SecretId { .. } => "destroy its secret_id",
            Self::Token => "revoke the token in it",
        }
    }

    /// Why a restart needs another delivery.
    const fn after_a_restart(&self) -> &'static str {
        match self {
            Self::SecretId { .. } => SECRET_ID_IN_MEMORY,
            Self::Token => "the token is kept in memory only: have the agent log in again",
        }
    }
}

impl fmt::Display for ExpectedPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SecretId { mount, role } => {
                write!(f, "auth/{mount}/role/{}/secret-id", role.as_deref().unwrap_or("<role>"))
            }
            Self::Token => write!(f, "sys/wrapping/wrap or {TOKEN_CREATE}"),
        }
    }
}

fn expected_path(target: &LoginTarget, role: Option<&str>) -> Result<ExpectedPath, LoginError> {
    let mount = fixed_mount(&target.auth).map_err(blocked)?;
    Ok(ExpectedPath::SecretId { mount: mount.as_str().to_owned(), role: role.map(str::to_owned) })
}

fn spent(name: &str, after_a_restart: &str) -> LoginError {
    let message = format!(
        "this machine has used the delivery in {name}, and a delivery works once: deliver a new one. It happens after \
         a restart, because {after_a_restart}"
    );
    LoginError::new(LoginFailure::Spent, TransitError::new(ErrorKind::Denied, message))
}

fn blocked(error: TransitError) -> LoginError {
    LoginError::new(LoginFailure::Blocked, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_answer_of_the_own_role_is_unwrapped() {
        let path = |role: Option<&str>| ExpectedPath::SecretId {
            mount: "approle".into(),
            role: role.map(str::to_owned),
        };
        let own = path(Some("kms"));
        assert!(own.matches("auth/approle/role/kms/secret-id"));
        assert!(own.matches("auth/approle/role/kms/custom-secret-id"));
        for foreign in [
            "sys/wrapping/wrap",
            "auth/approle/role/other/secret-id",
            "auth/approle2/role/kms/secret-id",
            "auth/approle/role/kms/role-id",
            "auth/approle/role/kms/x/secret-id",
            "",
        ] {
            assert!(!own.matches(foreign), "{foreign}");
        }
        for (token, fits) in [
            ("sys/wrapping/wrap", true),
            ("auth/token/create", true),
            ("auth/token/create/kms", true),
            ("auth/token/create-orphan", false),
            ("auth/approle/role/kms/secret-id", false),
        ] {
            assert_eq!(ExpectedPath::Token.matches(token), fits, "{token}");
        }
        assert!(path(None).matches("auth/approle/role/any/secret-id"));
        assert!(!path(None).matches("sys/wrapping/wrap"));
    }
}
