//! The files that a login needs.

use super::{
    AppRoleSettings, AuthMethod, AuthSettings, DeliveredSecretId, Delivery, InlineMethod, JwtSource,
    MaterialFile, SecretSource, SvidSource, X509Source,
};

/// Where kubelet mounts the tokens of a pod, by convention.
const POD_SECRETS: &str = "/var/run/secrets";

/// A file that a login needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NamedFile<'a> {
    /// The path and the setting.
    pub file: &'a MaterialFile,
    /// What other users must not read, such as "the secret_id"; `None` if others may read the file.
    pub secret: Option<&'static str>,
}

const fn public(file: &MaterialFile) -> NamedFile<'_> {
    NamedFile { file, secret: None }
}

const fn secret<'a>(file: &'a MaterialFile, what: &'static str) -> NamedFile<'a> {
    NamedFile { file, secret: Some(what) }
}

impl AuthSettings {
    /// Returns the files that the login needs.
    #[must_use]
    pub fn files(&self) -> Vec<NamedFile<'_>> {
        match &self.method {
            AuthMethod::AppRole(AppRoleSettings { role_id, secret_id, .. }) => {
                let mut files = app_role(role_id, secret_id.as_ref().map(|secret_id| &secret_id.source));
                if let Some(DeliveredSecretId { delivery: Delivery::Sealed { private_key_file }, .. }) =
                    secret_id
                {
                    files.push(secret(private_key_file, "the private key"));
                }
                files
            }
            AuthMethod::Aws(_) => Vec::new(),
            AuthMethod::Cert(settings) => x509(&settings.certificate),
            AuthMethod::Inline(InlineMethod::AppRole { role_id, secret_id }) => {
                app_role(role_id, secret_id.as_ref())
            }
            AuthMethod::Jwt(settings) | AuthMethod::Inline(InlineMethod::Jwt(settings)) => jwt(&settings.jwt),
            // Kubelet decides the mode of the file, and only the pod sees it.
            AuthMethod::Kubernetes(settings) | AuthMethod::Inline(InlineMethod::Kubernetes(settings)) => {
                vec![public(&settings.jwt_file)]
            }
            AuthMethod::Spiffe(settings) => match &settings.svid {
                SvidSource::Jwt(source) => jwt(source),
                SvidSource::X509(source) => x509(source),
            },
            AuthMethod::TokenFile(file) => vec![secret(file, "the wrapping token")],
            AuthMethod::Userpass(settings) | AuthMethod::Inline(InlineMethod::Userpass(settings)) => {
                file_of(&settings.password).map(|file| secret(file, "the password")).into_iter().collect()
            }
        }
    }

    /// Returns the file with the token of the own pod, if Vault has an API server review it.
    pub(in crate::config) fn pod_token(&self) -> Option<&MaterialFile> {
        match &self.method {
            AuthMethod::Kubernetes(settings) | AuthMethod::Inline(InlineMethod::Kubernetes(settings)) => {
                Some(&settings.jwt_file).filter(|file| file.path.starts_with(POD_SECRETS))
            }
            _ => None,
        }
    }

    /// Returns whether a session depends on the contents of the files, and not only the next login: they travel with
    /// each request, or another program writes the token of the session.
    #[must_use]
    pub fn session_needs_files(&self) -> bool {
        matches!(self.method, AuthMethod::Inline(_) | AuthMethod::TokenFile(_))
    }

    /// Returns whether the config file contains a secret of the login.
    #[must_use]
    pub fn has_inline_secret(&self) -> bool {
        let secret = match &self.method {
            AuthMethod::AppRole(AppRoleSettings { role_id, secret_id, .. }) => {
                secret_id.as_ref().map_or(role_id, |secret_id| &secret_id.source)
            }
            AuthMethod::Inline(InlineMethod::AppRole { role_id, secret_id }) => {
                secret_id.as_ref().unwrap_or(role_id)
            }
            AuthMethod::Inline(InlineMethod::Userpass(settings)) | AuthMethod::Userpass(settings) => {
                &settings.password
            }
            AuthMethod::Aws(_)
            | AuthMethod::Cert(_)
            | AuthMethod::Inline(InlineMethod::Jwt(_) | InlineMethod::Kubernetes(_))
            | AuthMethod::Jwt(_)
            | AuthMethod::Kubernetes(_)
            | AuthMethod::Spiffe(_)
            | AuthMethod::TokenFile(_) => return false,
        };
        matches!(secret, SecretSource::Inline(_))
    }
}

/// A role_id is not secret: without a secret_id, it opens nothing, unless the role needs none.
fn app_role<'a>(role_id: &'a SecretSource, secret_id: Option<&'a SecretSource>) -> Vec<NamedFile<'a>> {
    let role_id = file_of(role_id).map(|file| match secret_id {
        Some(_) => public(file),
        None => secret(file, "the role_id"),
    });
    let secret_id = secret_id.and_then(file_of).map(|file| secret(file, "the secret_id"));
    role_id.into_iter().chain(secret_id).collect()
}

fn jwt(source: &JwtSource) -> Vec<NamedFile<'_>> {
    match source {
        JwtSource::File(file) => vec![secret(file, "the JWT")],
        JwtSource::WorkloadApi { .. } => Vec::new(),
    }
}

fn x509(source: &X509Source) -> Vec<NamedFile<'_>> {
    match source {
        X509Source::Files { cert_file, key_file } => {
            vec![public(cert_file), secret(key_file, "the private key")]
        }
        X509Source::WorkloadApi(_) => Vec::new(),
    }
}

fn file_of(source: &SecretSource) -> Option<&MaterialFile> {
    match source {
        SecretSource::File(file) => Some(file),
        SecretSource::Inline(_) => None,
    }
}
