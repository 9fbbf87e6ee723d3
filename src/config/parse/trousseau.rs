//! Trousseau's logins: `clientcert` with `clientkey`, or `roleid` with `secretid`.
//!
//! Source: `providers/vault/pkg/vault/vault.go` of <https://github.com/ondat/trousseau>

use transit_client::key::Namespace;

use super::section::{Broken, Section, Value};
use crate::config::settings::{
    CredentialSettings, absolute_path,
    auth::{
        AppRoleSettings, AuthMethod, AuthSettings, CertSettings, DEFAULT_STATE_DIR, DeliveredSecretId,
        Delivery, LoginMount, MaterialFile, Secret, SecretSource, X509Source, rules,
    },
};

/// The settings of a login by certificate. They are paths.
pub(super) const CERT: [&str; 2] = ["clientcert", "clientkey"];
/// The settings of a login by AppRole. They are secrets.
pub(super) const APP_ROLE: [&str; 2] = ["roleid", "secretid"];

/// Returns the names of those of `keys` that are set.
pub(super) fn present(section: &Section<'_>, keys: [&str; 2]) -> Result<Vec<String>, Broken> {
    let values = keys.into_iter().filter_map(|key| section.find(key));
    values.map(|value| value.string().map(|_| value.name)).collect()
}

pub(super) fn cert(section: &Section<'_>, namespace: &Namespace) -> Result<CredentialSettings, Broken> {
    let file = |key, what| {
        let value = section.required(key, what)?;
        Ok(MaterialFile { path: value.parsed(absolute_path)?, setting: value.name })
    };
    let certificate = X509Source::Files {
        cert_file: file("clientcert", "the path of the certificate for clientkey")?,
        key_file: file("clientkey", "the path of the key of clientcert")?,
    };
    login(section, namespace, AuthMethod::Cert(CertSettings { certificate, role: None }))
}

pub(super) fn app_role(section: &Section<'_>, namespace: &Namespace) -> Result<CredentialSettings, Broken> {
    let inline = |value: Value<'_>| value.parsed(Secret::new).map(SecretSource::Inline);
    let role_id = inline(section.required("roleid", "the role_id of the AppRole")?)?;
    let secret_id = section.find("secretid").map(inline).transpose()?;
    let secret_id = secret_id.map(|source| DeliveredSecretId { delivery: Delivery::Plain, source });
    login(section, namespace, AuthMethod::AppRole(AppRoleSettings { role: None, role_id, secret_id }))
}

fn login(
    section: &Section<'_>,
    namespace: &Namespace,
    method: AuthMethod,
) -> Result<CredentialSettings, Broken> {
    let place = |text: &str| rules::trousseau_place(text, method.name(), namespace);
    let (mount, namespace) = match section.find("authpath") {
        Some(value) => value.parsed(place)?,
        None => place("auth").map_err(|rule| section.broken("authpath", rule))?,
    };
    Ok(CredentialSettings::Login(Box::new(AuthSettings {
        method,
        mount: LoginMount::Fixed(mount),
        namespace,
        state_dir: DEFAULT_STATE_DIR.into(),
    })))
}
