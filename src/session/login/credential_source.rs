//! Makes the login of the settings: one arm for each method.

use std::sync::Arc;

use secrecy::SecretString;
use transit_client::{
    ErrorKind, TransitError,
    endpoint::{Endpoint, TlsMaterial},
    key::MountPath,
    vault::{
        Pool,
        auth::{
            AuthMount, Login, LoginError, LoginFailure, LoginMethod, approle, cert, jwt, spiffe, userpass,
        },
    },
};

use super::{
    authenticator::{Identity, LoginTarget},
    credential::CredentialHash,
    delivery::{self, DeliveryFile},
    svid::{self, CertificateForMount, JwtForMount},
};
use crate::config::{
    LoginMaterial,
    settings::auth::{
        AppRoleSettings, AuthMethod, AuthSettings, InlineMethod, JwtSource, KubernetesSettings, LoginMount,
        MaterialFile, SecretSource, SvidSource, UserpassSettings,
    },
};

/// A login that may be sent.
pub(super) struct Prepared {
    /// Identifies the credential that Vault may refuse.
    pub(super) credential: CredentialHash,
    /// Each attempt has another credential, so that a refusal says nothing about the next attempt.
    pub(super) is_fetched: bool,
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
            let certificate = svid::certificate(auth, material, &settings.certificate).await?;
            let login = cert::login(certificate.at.clone(), settings.role.as_deref());
            with_certificate(target, login, certificate).await
        }
        AuthMethod::Jwt(settings) => {
            let jwt = svid::jwt(auth, material, &settings.jwt).await?;
            Ok(jwt_login(LoginMethod::Jwt, &settings.role, jwt))
        }
        AuthMethod::Kubernetes(settings) => kubernetes_login(auth, material, settings),
        AuthMethod::Userpass(settings) => userpass_login(auth, material, settings),
        AuthMethod::Inline(method) => inline(auth, material, method),
        #[cfg(feature = "aws")]
        AuthMethod::Aws(settings) => super::aws::prepare(identity, target, settings).await,
        #[cfg(not(feature = "aws"))]
        AuthMethod::Aws(_) => Err(not_built_in("aws")),
        AuthMethod::Spiffe(settings) => match &settings.svid {
            SvidSource::Jwt(source) => {
                let svid = svid::jwt(auth, material, source).await?;
                let login = spiffe::jwt_login(svid.at.clone(), &settings.role, svid.jwt.clone());
                Ok(with_jwt(login, svid))
            }
            SvidSource::X509(source) => {
                let svid = svid::certificate(auth, material, source).await?;
                with_certificate(target, spiffe::x509_login(svid.at.clone(), &settings.role), svid).await
            }
        },
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
        InlineMethod::Jwt(settings) => match &settings.jwt {
            JwtSource::File(jwt_file) => {
                let jwt = svid::jwt_of_file(auth, material, jwt_file)?;
                Ok(jwt_login(LoginMethod::Jwt, &settings.role, jwt))
            }
            // The rules of the config refuse it.
            JwtSource::WorkloadApi { .. } => Err(blocked(TransitError::new(
                ErrorKind::Config,
                "inline authentication cannot use the Workload API: set vault.auth.login.jwt_file",
            ))),
        },
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
        return Ok(Prepared {
            credential,
            is_fetched: false,
            login,
            pool: None,
            waits_for: waits_for(&settings.role_id),
        });
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
    Ok(Prepared { credential, is_fetched: false, login, pool: None, waits_for: name })
}

fn kubernetes_login(
    auth: &AuthSettings,
    material: &LoginMaterial,
    settings: &KubernetesSettings,
) -> Result<Prepared, LoginError> {
    let jwt = svid::jwt_of_file(auth, material, &settings.jwt_file)?;
    Ok(jwt_login(LoginMethod::Kubernetes, &settings.role, jwt))
}

fn jwt_login(method: LoginMethod, role: &str, jwt: JwtForMount) -> Prepared {
    let login = jwt::login(method, jwt.at.clone(), role, jwt.jwt.clone());
    with_jwt(login, jwt)
}

fn with_jwt(login: Login, jwt: JwtForMount) -> Prepared {
    let is_fetched = jwt.origin.is_fetched();
    Prepared { is_fetched, ..prepared(login, [&jwt.jwt], jwt.origin.into_name()) }
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
    certificate: CertificateForMount,
) -> Result<Prepared, LoginError> {
    let endpoint = target.config.endpoint();
    let CertificateForMount { chain, key, origin, .. } = certificate;
    let credential = CredentialHash::of([chain.as_slice()]);
    let tls = TlsMaterial { client_cert: Some(chain), client_key: Some(key), ..endpoint.tls };
    let pool = Pool::new(&Endpoint { tls, ..endpoint }).await.map_err(|error| {
        let failure =
            if error.kind == ErrorKind::Config { LoginFailure::Blocked } else { LoginFailure::Away };
        LoginError::new(failure, error)
    })?;
    let is_fetched = origin.is_fetched();
    Ok(Prepared { credential, is_fetched, login, pool: Some(Arc::new(pool)), waits_for: origin.into_name() })
}

fn prepared<'a>(
    login: Login,
    secrets: impl IntoIterator<Item = &'a SecretString>,
    waits_for: String,
) -> Prepared {
    let credential = CredentialHash::of_secrets(secrets);
    Prepared { credential, is_fetched: false, login, pool: None, waits_for }
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

pub(super) fn not_built_in(feature: &str) -> LoginError {
    let message =
        format!("this build of transit-kms has no feature `{feature}`: build it with --features {feature}");
    blocked(TransitError::new(ErrorKind::Config, message))
}

pub(super) fn blocked(error: TransitError) -> LoginError {
    LoginError::new(LoginFailure::Blocked, error)
}
