//! What a failed login means: what has to happen before the next attempt.

mod aws;

use super::{Login, LoginMethod};
use crate::{ErrorKind, TransitError};

/// The kind of a failed login. It decides when the next attempt follows.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum LoginFailure {
    /// Vault did not answer, or not as Vault does. The next attempt follows soon.
    Away,
    /// Vault does not allow the login, for a reason that may pass without another credential: the alias is
    /// locked, the address is not in the bound CIDRs, the role or the mount is missing, the reviewer is away.
    /// Attempts follow with long pauses.
    Blocked,
    /// Vault does not accept the credential. After two attempts, only another credential helps.
    Refused,
    /// The credential could be used once, and this machine has used it. Another one must be delivered.
    Spent,
    /// The credential was used or forged by another hand. It raises an alarm, and another one must be
    /// delivered.
    Tampered,
}

impl LoginFailure {
    /// Every kind, in the order of the labels.
    pub const ALL: [Self; 5] = [Self::Away, Self::Blocked, Self::Refused, Self::Spent, Self::Tampered];

    /// The value of the label `result`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Away => "away",
            Self::Blocked => "blocked",
            Self::Refused => "refused",
            Self::Spent => "spent",
            Self::Tampered => "tampered",
        }
    }

    /// Whether only a new delivery, which changes a file, makes another attempt useful.
    #[must_use]
    pub const fn needs_new_credential(self) -> bool {
        matches!(self, Self::Refused | Self::Spent | Self::Tampered)
    }
}

/// Why a login has not brought a token.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{error}")]
pub struct LoginError {
    /// The cause with Vault's words, and the next step.
    pub error: TransitError,
    /// What has to happen before the next attempt.
    pub failure: LoginFailure,
}

/// The refusals that are known by Vault's words.
///
/// Source: `builtin/credential/*/path_login.go` of Vault and OpenBao, and `vault-plugin-auth-jwt`
struct Refusal {
    methods: &'static [LoginMethod],
    words: &'static [&'static str],
    failure: LoginFailure,
    meaning: &'static str,
}

const JWT: &[LoginMethod] = &[LoginMethod::Jwt, LoginMethod::Kubernetes, LoginMethod::Spiffe];
const CERT: &[LoginMethod] = &[LoginMethod::Cert, LoginMethod::Spiffe];

/// The first row whose words occur counts.
const REFUSALS: &[Refusal] = &[
    Refusal {
        methods: &[LoginMethod::AppRole],
        words: &["source address"],
        failure: LoginFailure::Blocked,
        meaning: "the address of this machine is not in the CIDRs that the role or the secret_id is bound to",
    },
    Refusal {
        methods: &[LoginMethod::AppRole],
        words: &["missing secret_id"],
        failure: LoginFailure::Blocked,
        meaning: "the role needs a secret_id: set vault.auth.secret_id_file",
    },
    Refusal {
        methods: &[LoginMethod::AppRole],
        words: &[
            "invalid role or secret ID",
            "invalid secret_id",
            "invalid secret id",
            "invalid role_id",
            "invalid role ID",
        ],
        failure: LoginFailure::Refused,
        meaning: "Vault does not accept the role_id or the secret_id (it is wrong, expired, used up or destroyed): \
                  deliver a new secret_id",
    },
    Refusal {
        methods: &[LoginMethod::Userpass],
        words: &["invalid username or password"],
        failure: LoginFailure::Refused,
        meaning: "Vault does not accept the user name or the password: correct vault.auth.username or the password",
    },
    Refusal {
        methods: JWT,
        words: &["token is expired", "validation failed, token is expired", "expired (exp)"],
        failure: LoginFailure::Refused,
        meaning: "the JWT has expired: look at what renews its file, and at the clocks",
    },
    Refusal {
        methods: JWT,
        words: &["not valid yet", "not yet valid", "before the nbf"],
        failure: LoginFailure::Blocked,
        meaning: "the JWT is not valid yet: set the clocks of its issuer and of Vault",
    },
    Refusal {
        methods: JWT,
        words: &[
            "no known key successfully validated",
            "error verifying token signature",
            "invalid signature",
        ],
        failure: LoginFailure::Refused,
        meaning: "Vault knows no key that has signed the JWT: add the issuer's key to the mount \
                  (jwt_validation_pubkeys, jwks_url or oidc_discovery_url)",
    },
    Refusal {
        methods: JWT,
        words: &["fetching keys", "error fetching", "failed to fetch", "connection refused", "lookup failed"],
        failure: LoginFailure::Blocked,
        meaning: "Vault cannot reach what verifies the JWT",
    },
    Refusal {
        methods: &[LoginMethod::Kubernetes],
        words: &["service account name not authorized", "namespace not authorized"],
        failure: LoginFailure::Blocked,
        meaning: "the role does not allow this ServiceAccount: correct bound_service_account_names and \
                  bound_service_account_namespaces of the role, or vault.auth.role",
    },
    Refusal {
        methods: &[LoginMethod::Kubernetes],
        words: &["audience", "(aud)"],
        failure: LoginFailure::Blocked,
        meaning: "the audience of the token is not the `audience` of the role",
    },
    Refusal {
        methods: JWT,
        words: &["audience", "(aud)"],
        failure: LoginFailure::Blocked,
        meaning: "the audience of the JWT is not in bound_audiences of the role",
    },
    Refusal {
        methods: JWT,
        words: &["claim", "subject", "(sub)"],
        failure: LoginFailure::Blocked,
        meaning: "the JWT does not match bound_subject or bound_claims of the role",
    },
    Refusal {
        methods: JWT,
        words: &["could not be found", "invalid role name", "missing role"],
        failure: LoginFailure::Blocked,
        meaning: "the role does not exist: create it, or correct vault.auth.role",
    },
    Refusal {
        methods: &[LoginMethod::Kubernetes],
        words: &["permission denied"],
        failure: LoginFailure::Blocked,
        meaning: "Vault does not accept the ServiceAccount, or the API server that it asks for a TokenReview does \
                  not answer. If that is the cluster that this process serves, neither can start: see \
                  docs/auth/kubernetes.md",
    },
    Refusal {
        methods: &[LoginMethod::Spiffe],
        words: &["permission denied"],
        failure: LoginFailure::Blocked,
        meaning: "Vault does not accept the SVID: check passthrough_request_headers (it must have Authorization), \
                  audience, trust domain and bundle of the mount, and workload_id_patterns of the role",
    },
    Refusal {
        methods: CERT,
        words: &["missing name in alias"],
        failure: LoginFailure::Blocked,
        meaning: "the certificate has no common name, which the method cert needs as the name of the alias: give \
                  the entry of the SPIFFE server a DNS name, which becomes the common name",
    },
    Refusal {
        methods: CERT,
        words: &["client certificate must be supplied", "tls connection is required"],
        failure: LoginFailure::Blocked,
        meaning: "no client certificate has reached Vault: its listener must ask for one \
                  (tls_disable_client_certs=false), and no proxy in between may end TLS",
    },
    Refusal {
        methods: CERT,
        words: &["no chain matching", "failed to match all constraints", "invalid certificate"],
        failure: LoginFailure::Blocked,
        meaning: "no certificate role matches the certificate, or none has reached Vault: check its authority, \
                  allowed_uri_sans and allowed_common_names of the role, and vault.auth.role; no proxy in \
                  between may end TLS",
    },
];

/// The meaning of a refusal whose words are not in the table.
const LOCKED: &str = "Vault does not allow the login now. Is the user or role locked after failed logins (it is \
                      unlocked after lockout_duration, or by sys/locked-users), is the address of this machine not \
                      in the bound CIDRs, or is the role missing";

impl LoginError {
    /// An error with its consequence.
    #[must_use]
    pub fn new(failure: LoginFailure, error: TransitError) -> Self {
        Self { error, failure }
    }

    /// The meaning of an error of `login`.
    pub(super) fn of_login(login: &Login, error: TransitError) -> Self {
        Self::of_attempt(login.method(), login.single_use, error)
    }

    /// The meaning of the refusal of a login that travels with each request.
    pub(super) fn of_refusal(method: LoginMethod, error: TransitError) -> Self {
        Self::of_attempt(method, false, error)
    }

    fn of_attempt(method: LoginMethod, single_use: bool, error: TransitError) -> Self {
        let error = aws::without_canonical_request(method, error);
        let known = REFUSALS.iter().chain(aws::REFUSALS).find(|row| {
            row.methods.contains(&method) && row.words.iter().any(|words| error.message.contains(words))
        });
        let may_be_used = single_use && error.may_have_been_processed();
        let (failure, meaning) = match (known, error.kind) {
            (Some(row), _) => (row.failure, row.meaning),
            (None, ErrorKind::Denied | ErrorKind::TokenInvalid) => (LoginFailure::Blocked, LOCKED),
            (None, ErrorKind::Config | ErrorKind::KeyNotFound) => {
                return Self::new(LoginFailure::Blocked, error);
            }
            (None, _) if may_be_used => (
                LoginFailure::Spent,
                "the answer to the login was lost, and the secret_id allows one login: deliver a new one",
            ),
            (None, _) => return Self::new(LoginFailure::Away, error),
        };
        let message = format!("{meaning} ({})", error.message);
        // What Vault refuses is not an outage, whatever status it has used.
        let kind = if failure == LoginFailure::Away { error.kind } else { ErrorKind::Denied };
        Self::new(failure, TransitError::new(kind, message).with_source(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        key::{MountPath, Namespace},
        vault::auth::AuthMount,
    };

    pub(super) fn failed(method: LoginMethod, kind: ErrorKind, message: &str) -> LoginError {
        let at = AuthMount { mount: MountPath::new("m").unwrap(), namespace: Namespace::default() };
        LoginError::of_login(&Login::new(method, at, []), TransitError::new(kind, message))
    }

    /// In the words that OpenBao 2.7.2 was observed to use, and that the sources have.
    #[test]
    fn a_refusal_is_understood_by_vaults_words() {
        use LoginFailure::{Away, Blocked, Refused};
        use LoginMethod::{AppRole, Cert, Jwt, Kubernetes, Spiffe, Userpass};
        for (method, kind, words, failure, meaning) in [
            (AppRole, ErrorKind::Denied, "invalid role or secret ID", Refused, "deliver a new secret_id"),
            (AppRole, ErrorKind::Denied, "1 error occurred:\n\t* permission denied", Blocked, "locked"),
            (
                AppRole,
                ErrorKind::Denied,
                "source address \"127.0.0.1\" unauthorized through CIDR restrictions on the secret ID",
                Blocked,
                "CIDRs",
            ),
            (Userpass, ErrorKind::Denied, "invalid username or password", Refused, "the password"),
            (
                Jwt,
                ErrorKind::Denied,
                "error validating token: invalid expiration time (exp) claim: token is expired",
                Refused,
                "has expired",
            ),
            (
                Jwt,
                ErrorKind::Denied,
                "error validating token: error verifying token signature: no known key successfully validated the token signature",
                Refused,
                "jwt_validation_pubkeys",
            ),
            (
                Jwt,
                ErrorKind::Denied,
                "error validating token: invalid audience (aud) claim: audience claim does not match any expected audience",
                Blocked,
                "bound_audiences",
            ),
            (Jwt, ErrorKind::Denied, "role \"x\" could not be found", Blocked, "does not exist"),
            (Kubernetes, ErrorKind::Denied, "permission denied", Blocked, "TokenReview"),
            (Spiffe, ErrorKind::Denied, "permission denied", Blocked, "passthrough_request_headers"),
            (
                Kubernetes,
                ErrorKind::Denied,
                "service account name not authorized",
                Blocked,
                "bound_service_account_names",
            ),
            (
                Kubernetes,
                ErrorKind::Denied,
                "invalid audience (aud) claim: audience claim does not match any expected audience",
                Blocked,
                "`audience` of the role",
            ),
            (
                Cert,
                ErrorKind::Unreachable,
                "Vault answered 500: missing name in alias",
                Blocked,
                "common name",
            ),
            (
                Cert,
                ErrorKind::Denied,
                "no chain matching all constraints could be found for this login certificate",
                Blocked,
                "allowed_uri_sans",
            ),
            (AppRole, ErrorKind::Unreachable, "Vault at https://v answered 503: sealed", Away, "sealed"),
            (AppRole, ErrorKind::KeyNotFound, "nothing is mounted at auth/m", Blocked, "nothing is mounted"),
        ] {
            let error = failed(method, kind, words);
            assert_eq!(error.failure, failure, "{words}");
            let message = &error.error.message;
            assert!(message.contains(meaning) && message.contains(words), "{message}");
        }
    }
}
