//! The login method `aws`: a signed request to AWS's STS, or the identity document of an EC2 instance.
//!
//! Source: <https://developer.hashicorp.com/vault/api-docs/auth/aws>

use secrecy::SecretString;

use super::{AuthMount, Login, LoginMethod};

/// A login with the type `iam`: `fields` are the role and a signed `GetCallerIdentity` request.
///
/// It may be sent to several nodes, because STS accepts the request as often as it gets it within 15 minutes.
#[must_use]
pub fn iam_login(at: AuthMount, fields: impl IntoIterator<Item = (&'static str, SecretString)>) -> Login {
    Login::new(LoginMethod::Aws, at, fields)
}

/// A login with the type `ec2`: `fields` are the role, a signed identity document, and the nonce of this instance.
///
/// With `disallow_reauthentication`, which this client does not see, Vault accepts one login of an instance, so it is not
/// sent to another node after a node may have processed it. Without this setting, a lost answer does no harm: Vault keeps the nonce of the first
/// login, and the next attempt has the same one (`validateMetadata` in `builtin/credential/aws/path_login.go`).
#[must_use]
pub fn ec2_login(at: AuthMount, fields: impl IntoIterator<Item = (&'static str, SecretString)>) -> Login {
    Login::new(LoginMethod::Aws, at, fields).with_uses(None)
}
