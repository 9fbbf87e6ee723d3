//! The rules of `auth:`, the settings of a login.

pub(super) mod keys;
mod sources;

use std::{collections::BTreeMap, path::PathBuf};

use transit_client::key::{MountPath, Namespace};

use self::{
    keys::{INLINE_METHODS, KnownMethod, METHODS, UNSUPPORTED, elsewhere},
    sources::{file, jwt, required_source, source, x509},
};
use super::section::{Broken, Section, Value};
use crate::config::settings::{
    CredentialSettings, absolute_path,
    auth::{
        AppRoleSettings, AuthMethod, AuthSettings, AwsProof, AwsSettings, CertSettings, DEFAULT_STATE_DIR,
        DeliveredSecretId, Delivery, InlineMethod, JwtSettings, JwtSource, KubernetesSettings, LoginMount,
        MaterialFile, SERVICE_ACCOUNT_TOKEN, SecretSource, SpiffeSettings, SvidSource, TrustDomainName,
        TrustDomains, UserpassSettings, WorkloadApiSettings, X509Source, rules,
    },
};

/// Returns what an `auth:` block says. `namespace` is the default of its own.
pub(super) fn credentials(auth: &Section<'_>, namespace: &Namespace) -> Result<CredentialSettings, Broken> {
    let method = match known_method(auth, &METHODS)? {
        "agent" => return Ok(CredentialSettings::Agent),
        "token_file" => return token_file(auth, namespace),
        "inline" => {
            let login = auth.required("login", "the login whose credentials travel with each request")?;
            let login = login.section()?;
            let method = AuthMethod::Inline(inline(&login)?);
            // The login is in this block, and so are its mount and its namespace.
            return settings(&login, method, namespace);
        }
        "approle" => AuthMethod::AppRole(app_role(auth)?),
        "aws" => AuthMethod::Aws(aws(auth)?),
        "cert" => AuthMethod::Cert(CertSettings {
            certificate: x509(
                auth,
                "the PEM file of the certificate, together with key_file; or workload_api",
            )?,
            role: auth.parsed("role", rules::name)?,
        }),
        "jwt" => AuthMethod::Jwt(jwt_settings(auth)?),
        "kubernetes" => AuthMethod::Kubernetes(kubernetes(auth)?),
        "spiffe" => AuthMethod::Spiffe(spiffe(auth)?),
        _ => AuthMethod::Userpass(userpass(auth)?),
    };
    settings(auth, method, namespace)
}

/// Returns the method of the block, after a check that all keys are settings of this method.
fn known_method(auth: &Section<'_>, methods: &'static [KnownMethod]) -> Result<&'static str, Broken> {
    let value = auth.required("method", "the login method, such as approle")?;
    let text = value.string()?;
    let is = |name: &&str| text.eq_ignore_ascii_case(name);
    let Some(method) = methods.iter().find(|method| is(&method.name)) else {
        let names = methods.iter().map(|method| method.name).collect::<Vec<_>>().join(", ");
        return Err(value.broken(if is(&"token") {
            "token is no login: set vault.token, or use method: token_file".to_owned()
        } else if let Some(name) = UNSUPPORTED.iter().find(|name| is(name)) {
            format!(
                "{name} is not supported: let an agent log in, and use method: agent or method: token_file; \
                 supported are {names}"
            )
        } else if METHODS.iter().any(|method| is(&method.name)) {
            format!("must be a method whose credentials can travel with each request: {names}")
        } else {
            format!("must be a known login method: {names}")
        }));
    };
    auth.refuse_unknown(&[&["method"], method.settings], elsewhere)?;
    Ok(method.name)
}

/// The settings that several methods have.
fn settings(
    auth: &Section<'_>,
    method: AuthMethod,
    namespace: &Namespace,
) -> Result<CredentialSettings, Broken> {
    let default = match &method {
        AuthMethod::Inline(method) => method.name(),
        method => method.name(),
    };
    let mount = match (auth.find("mount"), auth.find("trust_domains")) {
        (Some(_), Some(domains)) => {
            return Err(domains.broken("cannot be used together with mount: keep one of them"));
        }
        (None, Some(domains)) => LoginMount::ByTrustDomain(trust_domains(&domains, &method)?),
        (Some(mount), None) => LoginMount::Fixed(mount.parsed(rules::mount)?),
        (None, None) => {
            LoginMount::Fixed(MountPath::new(default).map_err(|rule| auth.broken("mount", rule))?)
        }
    };
    Ok(CredentialSettings::Login(Box::new(AuthSettings {
        method,
        mount,
        namespace: auth.parsed("namespace", Namespace::new)?.unwrap_or_else(|| namespace.clone()),
        state_dir: auth.parsed("state_dir", absolute_path)?.unwrap_or_else(|| DEFAULT_STATE_DIR.into()),
    })))
}

fn trust_domains(value: &Value<'_>, method: &AuthMethod) -> Result<TrustDomains, Broken> {
    let mut mounts = BTreeMap::new();
    for (domain, mount) in value.section()?.pairs() {
        let domain = TrustDomainName::new(domain).map_err(|rule| mount.broken(format!("its key {rule}")))?;
        mounts.insert(domain, mount.parsed(rules::mount)?);
    }
    let domains = TrustDomains::new(mounts).map_err(|rule| value.broken(rule))?;
    let spiffe_id = workload_api(method).and_then(|api| api.spiffe_id.as_ref());
    match spiffe_id {
        Some(id) if domains.mount_of(id.trust_domain().as_str()).is_none() => {
            Err(value.broken("must contain the trust domain of workload_api.spiffe_id"))
        }
        _ => Ok(domains),
    }
}

fn of_jwt(source: &JwtSource) -> Option<&WorkloadApiSettings> {
    match source {
        JwtSource::File(_) => None,
        JwtSource::WorkloadApi { api, .. } => Some(api),
    }
}

fn of_x509(source: &X509Source) -> Option<&WorkloadApiSettings> {
    match source {
        X509Source::Files { .. } => None,
        X509Source::WorkloadApi(api) => Some(api),
    }
}

fn workload_api(method: &AuthMethod) -> Option<&WorkloadApiSettings> {
    match method {
        AuthMethod::Cert(settings) => of_x509(&settings.certificate),
        AuthMethod::Jwt(settings) | AuthMethod::Inline(InlineMethod::Jwt(settings)) => of_jwt(&settings.jwt),
        AuthMethod::Spiffe(SpiffeSettings { svid: SvidSource::Jwt(source), .. }) => of_jwt(source),
        AuthMethod::Spiffe(SpiffeSettings { svid: SvidSource::X509(source), .. }) => of_x509(source),
        AuthMethod::AppRole(_)
        | AuthMethod::Aws(_)
        | AuthMethod::Inline(_)
        | AuthMethod::Kubernetes(_)
        | AuthMethod::TokenFile(_)
        | AuthMethod::Userpass(_) => None,
    }
}

const ROLE_ID: &str = "the role_id, or the path of a file with it in role_id_file";
const SECRET_ID_REQUIRED: &str = "requires secret_id or secret_id_file";

fn app_role(auth: &Section<'_>) -> Result<AppRoleSettings, Broken> {
    let role_id = required_source(auth, ["role_id", "role_id_file"], ROLE_ID)?;
    let secret_id = source(auth, ["secret_id", "secret_id_file"])?;
    let (delivery, key) = (auth.find("delivery"), auth.find("private_key_file"));
    let is_sealed = match &delivery {
        Some(value) => value.string()?.eq_ignore_ascii_case("sealed"),
        None => false,
    };
    if let Some(key) = key.filter(|_| !is_sealed) {
        return Err(key.broken("requires delivery: sealed"));
    }
    let what =
        match &delivery {
            None => Delivery::Plain,
            Some(value) => match value.string()?.to_ascii_lowercase().as_str() {
                "cubbyhole" => Delivery::Cubbyhole,
                "plain" => Delivery::Plain,
                "sealed" => Delivery::Sealed {
                    private_key_file: file(auth.required(
                        "private_key_file",
                        "the RSA key of this node, made by transit-kms keygen",
                    )?)?,
                },
                "wrapped" => Delivery::Wrapped,
                _ => return Err(value.broken("must be plain, wrapped, cubbyhole or sealed")),
            },
        };
    let role = auth.find("role").map(|value| value.parsed(rules::name)).transpose()?;
    if role.is_none() && matches!(what, Delivery::Cubbyhole | Delivery::Wrapped) {
        return Err(auth.absent("role", "the name of the AppRole role, to check what a wrapping token wraps"));
    }
    match (secret_id, delivery) {
        (None, Some(delivery)) => Err(delivery.broken(SECRET_ID_REQUIRED)),
        (source, _) => Ok(AppRoleSettings {
            role,
            role_id,
            secret_id: source.map(|source| DeliveredSecretId { delivery: what, source }),
        }),
    }
}

/// A file with a plain token is no login.
fn token_file(auth: &Section<'_>, namespace: &Namespace) -> Result<CredentialSettings, Broken> {
    let path = file(auth.required("token_file", "the path of the file with the token")?)?;
    let delivery = auth.find("delivery");
    let is_wrapped = match &delivery {
        None => false,
        Some(value) => match value.string()? {
            text if text.eq_ignore_ascii_case("plain") => false,
            text if text.eq_ignore_ascii_case("wrapped") => true,
            _ => return Err(value.broken("must be plain or wrapped")),
        },
    };
    if is_wrapped {
        return settings(auth, AuthMethod::TokenFile(path), namespace);
    }
    match ["namespace", "state_dir"].into_iter().find_map(|key| auth.find(key)) {
        Some(value) => Err(value.broken("requires delivery: wrapped")),
        None => Ok(CredentialSettings::TokenFile(path)),
    }
}

fn aws(auth: &Section<'_>) -> Result<AwsSettings, Broken> {
    let kind = auth.find("type");
    let is_iam = match &kind {
        None => true,
        Some(value) => match value.string()? {
            text if text.eq_ignore_ascii_case("ec2") => false,
            text if text.eq_ignore_ascii_case("iam") => true,
            _ => return Err(value.broken("must be iam or ec2")),
        },
    };
    let proof = if is_iam {
        AwsProof::Iam {
            region: auth.parsed("region", rules::region)?,
            server_id: auth.parsed("iam_server_id_header_value", rules::name)?,
        }
    } else {
        if let Some(value) =
            ["region", "iam_server_id_header_value"].into_iter().find_map(|key| auth.find(key))
        {
            return Err(value.broken("requires type: iam"));
        }
        AwsProof::Ec2
    };
    Ok(AwsSettings { proof, role: role(auth)? })
}

fn jwt_settings(auth: &Section<'_>) -> Result<JwtSettings, Broken> {
    Ok(JwtSettings { jwt: jwt(auth, "the path of a file with the JWT; or workload_api")?, role: role(auth)? })
}

fn kubernetes(auth: &Section<'_>) -> Result<KubernetesSettings, Broken> {
    let jwt_file = match auth.find("jwt_file") {
        Some(value) => file(value)?,
        None => MaterialFile { path: PathBuf::from(SERVICE_ACCOUNT_TOKEN), setting: auth.within("jwt_file") },
    };
    Ok(KubernetesSettings { jwt_file, role: role(auth)? })
}

fn spiffe(auth: &Section<'_>) -> Result<SpiffeSettings, Broken> {
    let kind = auth.required("svid", "jwt or x509")?;
    let (svid, others) = match kind.string()? {
        text if text.eq_ignore_ascii_case("jwt") => {
            let source = jwt(auth, "the path of a file with the JWT-SVID; or workload_api")?;
            (SvidSource::Jwt(source), ["cert_file", "key_file"].as_slice())
        }
        text if text.eq_ignore_ascii_case("x509") => {
            let what = "the PEM file of the X.509-SVID, together with key_file; or workload_api";
            (SvidSource::X509(x509(auth, what)?), ["jwt_file"].as_slice())
        }
        _ => return Err(kind.broken("must be jwt or x509")),
    };
    match others.iter().find_map(|key| auth.find(key)) {
        Some(value) => {
            Err(value.broken("does not fit svid: jwt_file is for jwt, cert_file and key_file for x509"))
        }
        None => Ok(SpiffeSettings { role: role(auth)?, svid }),
    }
}

fn userpass(auth: &Section<'_>) -> Result<UserpassSettings, Broken> {
    Ok(UserpassSettings {
        username: auth.required("username", "the name of the user")?.parsed(rules::username)?,
        password: required_source(
            auth,
            ["password", "password_file"],
            "the password, or the path of a file with it in password_file",
        )?,
    })
}

fn inline(login: &Section<'_>) -> Result<InlineMethod, Broken> {
    Ok(match known_method(login, &INLINE_METHODS)? {
        "approle" => {
            let role_id = required_source(login, ["role_id", "role_id_file"], ROLE_ID)?;
            let secret_id: Option<SecretSource> = source(login, ["secret_id", "secret_id_file"])?;
            if let Some(delivery) = login.find("delivery")
                && !delivery.string()?.eq_ignore_ascii_case("plain")
            {
                return Err(delivery.broken("must be plain, because the secret_id travels with each request"));
            }
            InlineMethod::AppRole { role_id, secret_id }
        }
        "jwt" => {
            if let Some(api) = login.find("workload_api") {
                return Err(api.broken(
                    "cannot be used with inline, because each request needs an SVID that has not expired: use \
                     method: jwt, or jwt_file with a file that is renewed",
                ));
            }
            InlineMethod::Jwt(jwt_settings(login)?)
        }
        "kubernetes" => InlineMethod::Kubernetes(kubernetes(login)?),
        _ => InlineMethod::Userpass(userpass(login)?),
    })
}

fn role(auth: &Section<'_>) -> Result<String, Broken> {
    auth.required("role", "the role of the login method")?.parsed(rules::name)
}
