//! The refusals of the login method `aws`.
//!
//! Vault does not lock an identity of AWS, so a refusal that passes without another credential is
//! [`LoginFailure::Blocked`]: a clock is set, a new access key is known everywhere in AWS, Vault's settings are
//! corrected.

use super::{LoginFailure, LoginMethod, Refusal};
use crate::TransitError;

const AWS: &[LoginMethod] = &[LoginMethod::Aws];

/// The order matters: the words of STS are within words of Vault.
///
/// Source: `builtin/credential/aws/path_login.go` of Vault, and
/// <https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html>
pub(super) const REFUSALS: &[Refusal] = &[
    Refusal {
        methods: AWS,
        words: &["client nonce mismatch", "client nonce missing"],
        failure: LoginFailure::Refused,
        meaning: "this instance has logged in with another nonce: restore the nonce file in vault.auth.state_dir. If \
                  it is lost, delete auth/<mount>/identity-accesslist/<instance ID> in Vault, and the file; see \
                  docs/auth/aws.md",
    },
    Refusal {
        methods: AWS,
        words: &["reauthentication is disabled"],
        failure: LoginFailure::Blocked,
        meaning: "Vault allows one login of this instance: set disallow_reauthentication=false in the role, and \
                  delete auth/<mount>/identity-accesslist/<instance ID> in Vault",
    },
    Refusal {
        methods: AWS,
        words: &["error validating X-Vault-AWS-IAM-Server-ID header"],
        failure: LoginFailure::Blocked,
        meaning: "vault.auth.iam_server_id_header_value must be the value of iam_server_id_header_value in \
                  auth/<mount>/config/client",
    },
    Refusal {
        methods: AWS,
        words: &["Signature expired", "Signature not yet current", "RequestExpired"],
        failure: LoginFailure::Blocked,
        meaning: "the time of the signature is more than 15 minutes off: set the clock of this machine",
    },
    Refusal {
        methods: AWS,
        words: &["Credential should be scoped to a valid region"],
        failure: LoginFailure::Blocked,
        meaning: "the request is signed for another region than that of Vault's STS endpoint: set vault.auth.region, \
                  or sts_endpoint and sts_region in auth/<mount>/config/client",
    },
    Refusal {
        methods: AWS,
        words: &["ExpiredToken"],
        failure: LoginFailure::Refused,
        meaning: "the AWS credentials have expired: look at what renews them",
    },
    Refusal {
        methods: AWS,
        words: &["InvalidClientTokenId"],
        failure: LoginFailure::Blocked,
        meaning: "AWS does not know the access key or its session token: it was deleted or deactivated, or it is only a \
                  few seconds old",
    },
    Refusal {
        methods: AWS,
        words: &["SignatureDoesNotMatch"],
        failure: LoginFailure::Refused,
        meaning: "AWS does not accept the signature: correct the secret access key",
    },
    Refusal {
        methods: AWS,
        words: &["from STS"],
        failure: LoginFailure::Blocked,
        meaning: "STS refuses the signed request of this machine",
    },
    Refusal {
        methods: AWS,
        words: &["error making upstream request"],
        failure: LoginFailure::Blocked,
        meaning: "Vault cannot reach STS: see sts_endpoint in auth/<mount>/config/client, and its network",
    },
    Refusal {
        methods: AWS,
        words: &["entry for role"],
        failure: LoginFailure::Blocked,
        meaning: "the role does not exist: create it, or correct vault.auth.role",
    },
    Refusal {
        methods: AWS,
        words: &["not allowed for role"],
        failure: LoginFailure::Blocked,
        meaning: "the role is of the other type: correct vault.auth.type, or auth_type of the role",
    },
    Refusal {
        methods: AWS,
        words: &["does not belong to", "does not satisfy the constraint", "Error validating instance"],
        failure: LoginFailure::Blocked,
        meaning: "the identity of this machine is not the one that the role is bound to: correct vault.auth.role, or \
                  the bound_* parameters of the role",
    },
    Refusal {
        methods: AWS,
        words: &["failed to verify instance ID"],
        failure: LoginFailure::Blocked,
        meaning: "Vault cannot verify the instance: it must run, and Vault needs ec2:DescribeInstances",
    },
    Refusal {
        methods: AWS,
        words: &[
            "certificates to verify the signature are not found",
            "failed to verify the instance identity document",
            "failed to verify the signature",
        ],
        failure: LoginFailure::Blocked,
        meaning: "Vault has no certificate that verifies the identity document: add the certificate of AWS for this \
                  region to auth/<mount>/config/certificate",
    },
];

/// Cuts the canonical request that STS may quote if a signature is wrong: it contains the session token.
pub(super) fn without_canonical_request(method: LoginMethod, error: TransitError) -> TransitError {
    match error.message.split_once("The Canonical String") {
        Some((before, _)) if method == LoginMethod::Aws => TransitError::new(error.kind, before.trim_end()),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::failed, *};
    use crate::ErrorKind;

    /// In the words of Vault's source and of STS. `tests/it/auth/aws.rs` has those that can be provoked.
    #[test]
    fn a_refusal_is_understood_by_the_words_of_vault_and_sts() {
        use LoginFailure::{Away, Blocked, Refused};
        let sts = |code: &str, message: &str| {
            format!(
                "error making upstream request: received error code 403 from STS: <Code>{code}</Code> \
                 <Message>{message}</Message>"
            )
        };
        for (words, failure, meaning) in [
            ("client nonce mismatch".into(), Refused, "restore the nonce file"),
            ("reauthentication is disabled".into(), Blocked, "disallow_reauthentication=false"),
            (
                "error validating X-Vault-AWS-IAM-Server-ID header: missing header".into(),
                Blocked,
                "iam_server_id_header_value",
            ),
            (
                sts("SignatureDoesNotMatch", "Signature expired: 20260101T000000Z is now earlier than"),
                Blocked,
                "clock",
            ),
            (
                sts("SignatureDoesNotMatch", "Credential should be scoped to a valid region."),
                Blocked,
                "vault.auth.region",
            ),
            (
                sts("ExpiredToken", "The security token included in the request is expired"),
                Refused,
                "expired",
            ),
            (
                sts("InvalidClientTokenId", "The security token included in the request is invalid"),
                Blocked,
                "access key",
            ),
            (
                sts("SignatureDoesNotMatch", "The request signature that was calculated"),
                Refused,
                "secret access key",
            ),
            (sts("AccessDenied", ""), Blocked, "STS refuses"),
            (
                "error making upstream request: error making request: dial tcp".into(),
                Blocked,
                "cannot reach STS",
            ),
            ("entry for role \"x\" not found".into(), Blocked, "does not exist"),
            ("auth method ec2 not allowed for role x".into(), Blocked, "vault.auth.type"),
            ("IAM Principal \"arn\" does not belong to the role \"x\"".into(), Blocked, "bound_*"),
            ("failed to verify instance ID: UnauthorizedOperation".into(), Blocked, "ec2:DescribeInstances"),
            ("failed to verify the signature: crypto/rsa".into(), Blocked, "config/certificate"),
            ("connection refused".into(), Away, ""),
        ] {
            let words: String = words;
            let error = failed(LoginMethod::Aws, ErrorKind::Unreachable, &words);
            assert_eq!(error.failure, failure, "{words}");
            let message = &error.error.message;
            assert!(message.contains(meaning) && message.contains(&words), "{message}");
        }
    }

    #[test]
    fn a_session_token_that_sts_quotes_is_cut() {
        let quoted = "from STS: SignatureDoesNotMatch The Canonical String for this request should have been \
                      'POST / x-amz-security-token:SECRET'";
        let error = failed(LoginMethod::Aws, ErrorKind::Denied, quoted);
        let all = format!("{error} {:?}", error.error);
        assert!(all.contains("SignatureDoesNotMatch") && !all.contains("SECRET"), "{all}");
    }
}
