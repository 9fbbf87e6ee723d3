//! The keys of an `auth:` block.

use std::borrow::Cow;

/// A login method that transit-kms supports, and its settings besides `method`.
pub(super) struct KnownMethod {
    pub(super) name: &'static str,
    pub(super) settings: &'static [&'static str],
}

const fn known(name: &'static str, settings: &'static [&'static str]) -> KnownMethod {
    KnownMethod { name, settings }
}

pub(super) const METHODS: [KnownMethod; 10] = [
    known("agent", &[]),
    known(
        "approle",
        &[
            "delivery",
            "mount",
            "namespace",
            "private_key_file",
            "role",
            "role_id",
            "role_id_file",
            "secret_id",
            "secret_id_file",
            "state_dir",
        ],
    ),
    known(
        "aws",
        &["iam_server_id_header_value", "mount", "namespace", "region", "role", "state_dir", "type"],
    ),
    known("cert", &["cert_file", "key_file", "mount", "namespace", "role", "trust_domains", "workload_api"]),
    known("inline", &["login"]),
    known("jwt", &["jwt_file", "mount", "namespace", "role", "trust_domains", "workload_api"]),
    known("kubernetes", &["jwt_file", "mount", "namespace", "role"]),
    known(
        "spiffe",
        &[
            "cert_file",
            "jwt_file",
            "key_file",
            "mount",
            "namespace",
            "role",
            "svid",
            "trust_domains",
            "workload_api",
        ],
    ),
    known("token_file", &["delivery", "namespace", "state_dir", "token_file"]),
    known("userpass", &["mount", "namespace", "password", "password_file", "username"]),
];

/// The methods whose credentials can travel with each request, and their settings there.
pub(super) const INLINE_METHODS: [KnownMethod; 4] = [
    known(
        "approle",
        &["delivery", "mount", "namespace", "role_id", "role_id_file", "secret_id", "secret_id_file"],
    ),
    known("jwt", &["jwt_file", "mount", "namespace", "role", "trust_domains", "workload_api"]),
    known("kubernetes", &["jwt_file", "mount", "namespace", "role"]),
    known("userpass", &["mount", "namespace", "password", "password_file", "username"]),
];

/// Login methods of Vault and OpenBao that transit-kms does not support.
pub(super) const UNSUPPORTED: [&str; 12] =
    ["alicloud", "azure", "cf", "gcp", "github", "kerberos", "ldap", "oci", "oidc", "okta", "radius", "saml"];

/// All keys of an `auth:` block, in lower case. Errors may show them.
pub(in crate::config::parse) const AUTH_SETTINGS: &[&str] = &[
    "cert_file",
    "delivery",
    "iam_server_id_header_value",
    "jwt_file",
    "key_file",
    "login",
    "method",
    "mount",
    "namespace",
    "password",
    "password_file",
    "private_key_file",
    "region",
    "role",
    "role_id",
    "role_id_file",
    "secret_id",
    "secret_id_file",
    "state_dir",
    "svid",
    "token_file",
    "trust_domains",
    "type",
    "username",
    "workload_api",
];
pub(in crate::config::parse) const WORKLOAD_API_SETTINGS: &[&str] = &["address", "audience", "spiffe_id"];

/// Returns where a key belongs that is not a setting of the method in use.
pub(super) fn elsewhere(key: &str) -> Option<Cow<'static, str>> {
    match key {
        "wrapped" => return Some("is written delivery: wrapped".into()),
        "token" => return Some("belongs beside auth:, not below it".into()),
        "audience" | "spiffe_id" | "address" => return Some("belongs below workload_api:".into()),
        _ => {}
    }
    let methods = METHODS.iter().filter(|method| method.settings.contains(&key));
    let names: Vec<_> = methods.map(|method| method.name).collect();
    let (last, others) = names.split_last()?;
    Some(match others {
        [] => format!("is a setting of method {last}").into(),
        others => format!("is a setting of the methods {} and {last}", others.join(", ")).into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_of_a_method_is_known() {
        let mut settings: Vec<_> =
            METHODS.iter().chain(&INLINE_METHODS).flat_map(|method| method.settings).copied().collect();
        settings.push("method");
        settings.sort_unstable();
        settings.dedup();
        assert_eq!(settings, AUTH_SETTINGS);
        let is_sorted = |names: &[&str]| names.is_sorted();
        assert!(is_sorted(&METHODS.each_ref().map(|method| method.name)) && is_sorted(&UNSUPPORTED));
    }

    #[test]
    fn a_setting_of_another_method_is_explained() {
        assert_eq!(elsewhere("username").unwrap(), "is a setting of method userpass");
        assert_eq!(elsewhere("delivery").unwrap(), "is a setting of the methods approle and token_file");
        assert!(elsewhere("magic").is_none());
    }
}
