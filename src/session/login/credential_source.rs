//! Makes the login of the settings: one arm for each method.

use std::sync::Arc;

use secrecy::SecretString;
use transit_client::{
    ErrorKind, TransitError,
    endpoint::{Endpoint, TlsMaterial},
    key::MountPath,
    vault::{
        Pool,
        auth::{AuthMount, Login, LoginError, LoginFailure, LoginMethod, approle, cert, jwt, userpass},
    },
};
use zeroize::Zeroizing;

use super::{
    authenticator::{Identity, LoginTarget},
    credential::CredentialHash,
    delivery::{self, DeliveryFile},
};
use crate::config::{
    LoginMaterial,
    settings::auth::{
        AppRoleSettings, AuthMethod, AuthSettings, InlineMethod, JwtSettings, JwtSource, KubernetesSettings,
        LoginMount, MaterialFile, SecretSource, UserpassSettings, X509Source,
    },
};

/// A login that may be sent.
pub(super) struct Prepared {
    /// Identifies the credential that Vault may refuse.
    pub(super) credential: CredentialHash,
    pub(super) login: Login,
    /// Connections that present a certificate; `None` for those of the session.
    pub(super) pool: Option<Arc<Pool>>,
    /// What has to change after a refusal, for messages.
    pub(super) waits_for: String,
}

/// Makes the login of the settings of `target`.
pub(super) async fn prepare(identity: &mut Identity, target: &LoginTarget) -> Result<Prepared, LoginError> {
    let (auth, material) = (&target.auth, &target.config.material);
    match &auth.method {
        AuthMethod::AppRole(settings) => approle(identity, target, settings).await,
        AuthMethod::Cert(settings) => {
            let X509Source::Files { cert_file, key_file } = &settings.certificate else {
                return Err(not_built_in("spiffe"));
            };
            let certificate = file(material, cert_file)?;
            let key = file(material, key_file)?;
            let login = cert::login(LoginMethod::Cert, fixed(auth)?, settings.role.as_deref());
            with_certificate(target, login, certificate, key, name_of(cert_file)).await
        }
        AuthMethod::Jwt(settings) => jwt_login(auth, material, settings),
        AuthMethod::Kubernetes(settings) => kubernetes_login(auth, material, settings),
        AuthMethod::Userpass(settings) => userpass_login(auth, material, settings),
        AuthMethod::Inline(method) => inline(auth, material, method),
        #[cfg(feature = "aws")]
        AuthMethod::Aws(settings) => super::aws::prepare(identity, target, settings).await,
        #[cfg(not(feature = "aws"))]
        AuthMethod::Aws(_) => Err(not_built_in("aws")),
        AuthMethod::Spiffe(_) => Err(not_built_in("spiffe")),
        // Its token is unwrapped, and there is no login.
        AuthMethod::TokenFile(_) => Err(not_built_in("token_file")),
    }
}

/// Makes the login that travels with each request.
pub(super) fn inline(
    auth: &AuthSettings,
    material: &LoginMaterial,
    method: &InlineMethod,
) -> Result<Prepared, LoginError> {
    match method {
        InlineMethod::AppRole { role_id: role_id_source, secret_id: source } => {
            let role_id = secret(material, role_id_source)?;
            let secret_id = source.as_ref().map(|source| secret(material, source)).transpose()?;
            let waits_for = waits_for(source.as_ref().unwrap_or(role_id_source));
            let secrets: Vec<_> = [&role_id].into_iter().chain(&secret_id).cloned().collect();
            let secret_id = secret_id.map(|value| approle::SecretId { num_uses: None, value });
            let login = approle::login(fixed(auth)?, role_id, secret_id);
            Ok(prepared(login, &secrets, waits_for))
        }
        InlineMethod::Jwt(settings) => jwt_login(auth, material, settings),
        InlineMethod::Kubernetes(settings) => kubernetes_login(auth, material, settings),
        InlineMethod::Userpass(settings) => userpass_login(auth, material, settings),
    }
}

async fn approle(
    identity: &mut Identity,
    target: &LoginTarget,
    settings: &AppRoleSettings,
) -> Result<Prepared, LoginError> {
    let (auth, material) = (&target.auth, &target.config.material);
    let role_id = secret(material, &settings.role_id)?;
    let at = fixed(auth)?;
    let Some(delivered) = &settings.secret_id else {
        let credential = CredentialHash::of_secrets([&role_id]);
        let login = approle::login(at, role_id, None);
        return Ok(Prepared { credential, login, pool: None, waits_for: waits_for(&settings.role_id) });
    };
    let (bytes, name): (&[u8], String) = match &delivered.source {
        SecretSource::File(material_file) => (file(material, material_file)?, name_of(material_file)),
        SecretSource::Inline(secret) => (secret.expose().as_bytes(), "vault.auth.secret_id".to_owned()),
    };
    let delivery_file =
        DeliveryFile { bytes, delivery: &delivered.delivery, name: &name, role: settings.role.as_deref() };
    let opened = delivery::open(identity, target, delivery_file).await?;
    // The delivery identifies the credential together with the role_id: either may be wrong.
    let credential = CredentialHash::of_secrets([&role_id, &opened.secret_id.value]);
    if opened.secret_id.is_single_use() {
        identity.warn_about_single_use(&name);
    }
    let login = approle::login(at, role_id, Some(opened.secret_id));
    Ok(Prepared { credential, login, pool: None, waits_for: name })
}

fn jwt_login(
    auth: &AuthSettings,
    material: &LoginMaterial,
    settings: &JwtSettings,
) -> Result<Prepared, LoginError> {
    let JwtSource::File(jwt_file) = &settings.jwt else { return Err(not_built_in("spiffe")) };
    jwt_file_login(LoginMethod::Jwt, auth, material, jwt_file, &settings.role)
}

fn kubernetes_login(
    auth: &AuthSettings,
    material: &LoginMaterial,
    settings: &KubernetesSettings,
) -> Result<Prepared, LoginError> {
    jwt_file_login(LoginMethod::Kubernetes, auth, material, &settings.jwt_file, &settings.role)
}

fn jwt_file_login(
    method: LoginMethod,
    auth: &AuthSettings,
    material: &LoginMaterial,
    jwt_file: &MaterialFile,
    role: &str,
) -> Result<Prepared, LoginError> {
    let name = name_of(jwt_file);
    let token = jwt::parse(file(material, jwt_file)?, &name).map_err(blocked)?;
    let login = jwt::login(method, fixed(auth)?, role, token.clone());
    Ok(prepared(login, [&token], name))
}

fn userpass_login(
    auth: &AuthSettings,
    material: &LoginMaterial,
    settings: &UserpassSettings,
) -> Result<Prepared, LoginError> {
    let password = secret(material, &settings.password)?;
    let login = userpass::login(fixed(auth)?, &settings.username, password.clone()).map_err(blocked)?;
    Ok(prepared(login, [&password], waits_for(&settings.password)))
}

/// A login on connections that present this certificate.
async fn with_certificate(
    target: &LoginTarget,
    login: Login,
    certificate: &[u8],
    key: &[u8],
    waits_for: String,
) -> Result<Prepared, LoginError> {
    let endpoint = target.config.endpoint();
    let tls = TlsMaterial {
        client_cert: Some(certificate.to_vec()),
        client_key: Some(Zeroizing::new(key.to_vec())),
        ..endpoint.tls
    };
    let pool = Pool::new(&Endpoint { tls, ..endpoint }).await.map_err(|error| {
        let failure =
            if error.kind == ErrorKind::Config { LoginFailure::Blocked } else { LoginFailure::Away };
        LoginError::new(failure, error)
    })?;
    let credential = CredentialHash::of([certificate]);
    Ok(Prepared { credential, login, pool: Some(Arc::new(pool)), waits_for })
}

fn prepared<'a>(
    login: Login,
    secrets: impl IntoIterator<Item = &'a SecretString>,
    waits_for: String,
) -> Prepared {
    Prepared { credential: CredentialHash::of_secrets(secrets), login, pool: None, waits_for }
}

/// The mount of a method that has no trust domains.
pub(super) fn fixed_mount(auth: &AuthSettings) -> Result<&MountPath, TransitError> {
    match &auth.mount {
        LoginMount::Fixed(mount) => Ok(mount),
        LoginMount::ByTrustDomain(_) => Err(TransitError::new(
            ErrorKind::Config,
            "vault.auth.trust_domains needs an SVID, whose trust domain chooses the mount: set vault.auth.mount",
        )),
    }
}

pub(super) fn fixed(auth: &AuthSettings) -> Result<AuthMount, LoginError> {
    let mount = fixed_mount(auth).map_err(blocked)?.clone();
    Ok(AuthMount { mount, namespace: auth.namespace.clone() })
}

fn secret(material: &LoginMaterial, source: &SecretSource) -> Result<SecretString, LoginError> {
    match source {
        SecretSource::Inline(secret) => Ok(secret.expose().into()),
        SecretSource::File(material_file) => {
            let bytes = file(material, material_file)?;
            let text = std::str::from_utf8(bytes).map(str::trim).unwrap_or_default();
            if text.is_empty() || text.contains(char::is_control) {
                let message = format!("{}: it must contain one line of text", name_of(material_file));
                return Err(blocked(TransitError::new(ErrorKind::Config, message)));
            }
            Ok(text.into())
        }
    }
}

/// The contents of a file, and its name for messages.
pub(super) fn contents<'a>(
    material: &'a LoginMaterial,
    material_file: &MaterialFile,
) -> Result<(&'a [u8], String), LoginError> {
    Ok((file(material, material_file)?, name_of(material_file)))
}

fn file<'a>(material: &'a LoginMaterial, material_file: &MaterialFile) -> Result<&'a [u8], LoginError> {
    material
        .get(material_file)
        .map_err(|error| blocked(TransitError::new(ErrorKind::Config, error.to_string()).with_source(error)))
}

fn waits_for(source: &SecretSource) -> String {
    match source {
        SecretSource::File(material_file) => name_of(material_file),
        SecretSource::Inline(_) => "the config file".to_owned(),
    }
}

/// The setting and the path of a file.
fn name_of(material_file: &MaterialFile) -> String {
    format!("{} ({})", material_file.setting, material_file.path.display())
}

fn not_built_in(feature: &str) -> LoginError {
    let message = format!("this build of transit-kms has no feature `{feature}`: see transit-kms --version");
    blocked(TransitError::new(ErrorKind::Config, message))
}

fn blocked(error: TransitError) -> LoginError {
    LoginError::new(LoginFailure::Blocked, error)
}
