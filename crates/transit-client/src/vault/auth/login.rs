//! One login to one mount.

use std::{io::Write, sync::Arc};

use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{LoggedIn, LoginError, LoginFailure};
use crate::{
    ErrorKind, TransitError,
    key::{MountPath, Namespace},
    metrics::ClientMetrics,
    operation::VaultOperation,
    token::Token,
    transit::Call,
    vault::{
        failover::Replay,
        pool::Pool,
        requester::{Outgoing, RequestAuth, RequestObserver, Requester},
    },
};

/// The login methods of Vault and OpenBao that this client knows.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum LoginMethod {
    /// A role_id and a secret_id.
    AppRole,
    /// The identity of an EC2 instance or an IAM principal.
    Aws,
    /// The client certificate of the TLS connection.
    Cert,
    /// A JWT that Vault verifies with configured keys.
    Jwt,
    /// The token of a ServiceAccount, which Vault has an API server verify.
    Kubernetes,
    /// A SPIFFE ID, as Vault Enterprise verifies it.
    Spiffe,
    /// A token that another program has wrapped.
    TokenFile,
    /// A user name and a password.
    Userpass,
}

impl LoginMethod {
    /// Every method, in the order of the labels.
    pub const ALL: [Self; 8] = [
        Self::AppRole,
        Self::Aws,
        Self::Cert,
        Self::Jwt,
        Self::Kubernetes,
        Self::Spiffe,
        Self::TokenFile,
        Self::Userpass,
    ];

    /// The name in the config, in messages and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AppRole => "approle",
            Self::Aws => "aws",
            Self::Cert => "cert",
            Self::Jwt => "jwt",
            Self::Kubernetes => "kubernetes",
            Self::Spiffe => "spiffe",
            Self::TokenFile => "token_file",
            Self::Userpass => "userpass",
        }
    }
}

/// Where a login method is mounted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuthMount {
    /// Below `auth/`, such as `approle`.
    pub mount: MountPath,
    /// The namespace of the mount. It may differ from that of the keys.
    pub namespace: Namespace,
}

/// The connections of a login, and its limits.
#[derive(Clone)]
pub struct LoginContext {
    /// The login must end by then.
    pub deadline: Instant,
    /// Counts the requests.
    pub metrics: Arc<ClientMetrics>,
    /// Is notified of the requests.
    pub observer: Option<Arc<dyn RequestObserver>>,
    /// The nodes of Vault. For a login with a certificate, their connections present it.
    pub pool: Arc<Pool>,
}

impl LoginContext {
    /// A requester with this authentication.
    pub(super) fn requester(
        &self,
        auth: &RequestAuth,
        namespace: &Namespace,
    ) -> Result<Requester, TransitError> {
        let requester = Requester::new(auth, namespace, Arc::clone(&self.pool), Arc::clone(&self.metrics))?;
        Ok(match &self.observer {
            Some(observer) => requester.with_observer(observer),
            None => requester,
        })
    }

    /// Sends a request that uses up `token`, and returns the whole JSON of the answer. It is never sent to a second
    /// node after a first one may have processed it.
    pub(super) async fn use_up(
        &self,
        token: &Token,
        namespace: &Namespace,
        operation: VaultOperation,
        path: &str,
    ) -> Result<Zeroizing<Vec<u8>>, TransitError> {
        let requester = self.requester(&RequestAuth::Token(token.clone()), namespace)?;
        let request = Outgoing {
            body: Zeroizing::default(),
            operation,
            path: path.to_owned(),
            replay: Replay::IfUnsent,
        };
        requester.send(request, self.call(), |response| Ok(response.body.clone())).await
    }

    /// The limits of one request. Its correlation ID says that it belongs to a login.
    pub(super) fn call(&self) -> Call<'static> {
        Call { deadline: self.deadline, uid: "login" }
    }
}

/// One login: the mount, and what is sent to it. It has no `Debug`, because it contains credentials.
pub struct Login {
    pub(super) at: AuthMount,
    /// Sent in the header `Authorization`, and not in the body.
    bearer: Option<SecretString>,
    pub(super) fields: Vec<(&'static str, SecretString)>,
    method: LoginMethod,
    /// Below the mount, such as `login`.
    path: String,
    replay: Replay,
    /// The credential can be used once: a lost answer to it is the end of it.
    pub(super) single_use: bool,
}

impl Login {
    /// A login at `<mount>/login` with these fields.
    pub(super) fn new(
        method: LoginMethod,
        at: AuthMount,
        fields: impl IntoIterator<Item = (&'static str, SecretString)>,
    ) -> Self {
        Self {
            at,
            bearer: None,
            fields: fields.into_iter().collect(),
            method,
            path: "login".to_owned(),
            replay: Replay::Safe,
            single_use: false,
        }
    }

    /// The same login at another path below the mount.
    pub(super) fn at_path(self, path: String) -> Self {
        Self { path, ..self }
    }

    /// The same login with this JWT in the header `Authorization`.
    pub(super) fn with_bearer(self, jwt: SecretString) -> Self {
        Self { bearer: Some(jwt), ..self }
    }

    /// The same login with a credential that allows `uses` logins; `None` if that is not known, 0 for any number.
    pub(super) fn with_uses(self, uses: Option<u64>) -> Self {
        // One whose uses are not known may allow one only. No node gets it after another may have.
        let replay = match uses {
            None | Some(1) => Replay::IfUnsent,
            Some(_) => Replay::Safe,
        };
        Self { replay, single_use: uses == Some(1), ..self }
    }

    /// The method of the login.
    #[must_use]
    pub fn method(&self) -> LoginMethod {
        self.method
    }

    /// The path of the login below its namespace, without `/v1/`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("auth/{}/{}", self.at.mount.as_str(), self.path)
    }

    /// Logs in.
    ///
    /// # Errors
    /// If Vault does not answer, refuses, or issues a token that cannot be used. [`LoginError::failure`] says
    /// what has to happen before the next attempt.
    pub async fn log_in(&self, context: &LoginContext) -> Result<LoggedIn, LoginError> {
        let auth = self.bearer.clone().map_or(RequestAuth::NoToken, RequestAuth::Bearer);
        let requester = context
            .requester(&auth, &self.at.namespace)
            .map_err(|error| LoginError::new(LoginFailure::Blocked, error))?;
        let request = Outgoing {
            body: self.body(),
            operation: VaultOperation::Login,
            path: self.path(),
            replay: self.replay,
        };
        // TTLs count from here: the time that the answer took must not be added to them.
        let sent_at = Instant::now();
        let answer =
            requester.send(request, context.call(), |response| LoggedIn::parse(response, sent_at)).await;
        let logged_in = answer
            .map_err(|error| LoginError::of_login(self, error))?
            .ok_or_else(|| LoginError::new(LoginFailure::Blocked, LoggedIn::second_factor()))?;
        logged_in.check().map_err(|error| LoginError::new(LoginFailure::Blocked, error))?;
        Ok(logged_in)
    }

    /// The JSON body, in one buffer that is wiped. The buffer is large enough: one that grows leaves copies of
    /// credentials in memory.
    pub(super) fn body(&self) -> Zeroizing<Vec<u8>> {
        /// An escaped byte has six characters (`\u0000`). Two quotes, a colon and a comma surround each text.
        const ESCAPED: usize = 6;
        let length: usize = self
            .fields
            .iter()
            .map(|(key, value)| (key.len() + value.expose_secret().len()) * ESCAPED + 8)
            .sum();
        let mut body = Zeroizing::new(Vec::with_capacity(length + 2));
        let fields: std::collections::BTreeMap<&str, Exposed<'_>> =
            self.fields.iter().map(|(key, value)| (*key, Exposed(value))).collect();
        // A `Vec` takes everything, and texts can always be written as JSON.
        let written = serde_json::to_writer(&mut *body, &fields).is_ok() && body.flush().is_ok();
        if !written {
            body.clear();
        }
        body
    }
}

/// Serialises a secret as its text.
struct Exposed<'a>(&'a SecretString);

impl Serialize for Exposed<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.expose_secret())
    }
}

/// The error for a setting or file that a login needs.
pub(super) fn unusable(message: impl Into<String>) -> TransitError {
    TransitError::new(ErrorKind::Config, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_json_in_one_buffer() {
        let at = AuthMount { mount: MountPath::new("approle").unwrap(), namespace: Namespace::default() };
        let odd = "\u{1}\"\\\n\u{fc}".repeat(50);
        let login = Login::new(
            LoginMethod::AppRole,
            at,
            [("role_id", "r".into()), ("secret_id", odd.clone().into())],
        );
        let body = login.body();
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(json, serde_json::json!({ "role_id": "r", "secret_id": odd }));
        assert!(body.capacity() < 6 * odd.len() + 200, "it has grown");
        assert_eq!(login.path(), "auth/approle/login");
    }
}
