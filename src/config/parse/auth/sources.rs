//! Settings that say where secrets, JWTs and certificates come from.

use super::super::section::{Broken, Section, Value};
use super::keys::WORKLOAD_API_SETTINGS;
use crate::config::settings::{
    absolute_path,
    auth::{JwtSource, MaterialFile, Secret, SecretSource, SpiffeId, WorkloadApiSettings, X509Source, rules},
};

pub(super) fn file(value: Value<'_>) -> Result<MaterialFile, Broken> {
    Ok(MaterialFile { path: value.parsed(absolute_path)?, setting: value.name })
}

/// Returns a secret that is either in the config (the first key) or in a file (the second key).
pub(super) fn source(auth: &Section<'_>, keys: [&str; 2]) -> Result<Option<SecretSource>, Broken> {
    let [inline, in_file] = keys;
    match (auth.find(inline), auth.find(in_file)) {
        (Some(value), Some(_)) => {
            Err(value.broken(format!("cannot be used together with {in_file}: keep one of them")))
        }
        (Some(value), None) => Ok(Some(SecretSource::Inline(value.parsed(Secret::new)?))),
        (None, Some(value)) => Ok(Some(SecretSource::File(file(value)?))),
        (None, None) => Ok(None),
    }
}

/// As [`source`], for a secret that must not be absent.
pub(super) fn required_source(
    auth: &Section<'_>,
    keys: [&str; 2],
    what: &str,
) -> Result<SecretSource, Broken> {
    let [inline, in_file] = keys;
    source(auth, keys)?.ok_or_else(|| {
        let key =
            if auth.entry(inline).is_none() && auth.entry(in_file).is_some() { in_file } else { inline };
        auth.absent(key, what)
    })
}

pub(super) fn jwt(auth: &Section<'_>, what: &str) -> Result<JwtSource, Broken> {
    match (auth.find("jwt_file"), auth.find("workload_api")) {
        (Some(_), Some(api)) => Err(api.broken("cannot be used together with jwt_file: keep one of them")),
        (Some(value), None) => Ok(JwtSource::File(file(value)?)),
        (None, Some(api)) => {
            let section = api.section()?;
            Ok(JwtSource::WorkloadApi {
                api: workload_api(&section)?,
                audience: section
                    .required("audience", "the audience of the JWT-SVID, such as vault")?
                    .parsed(rules::name)?,
            })
        }
        (None, None) => Err(auth.absent("jwt_file", what)),
    }
}

pub(super) fn x509(auth: &Section<'_>, what: &str) -> Result<X509Source, Broken> {
    match (auth.find("cert_file"), auth.find("key_file"), auth.find("workload_api")) {
        (Some(cert), Some(key), None) => {
            Ok(X509Source::Files { cert_file: file(cert)?, key_file: file(key)? })
        }
        (Some(single), None, None) => Err(single.broken("requires key_file")),
        (None, Some(single), None) => Err(single.broken("requires cert_file")),
        (None, None, Some(api)) => {
            let section = api.section()?;
            match section.find("audience") {
                Some(audience) => {
                    Err(audience.broken("is a setting of JWT-SVIDs, and this login uses X.509"))
                }
                None => Ok(X509Source::WorkloadApi(workload_api(&section)?)),
            }
        }
        (_, _, Some(api)) => {
            Err(api.broken("cannot be used together with cert_file and key_file: keep one of them"))
        }
        (None, None, None) => Err(auth.absent("cert_file", what)),
    }
}

fn workload_api(section: &Section<'_>) -> Result<WorkloadApiSettings, Broken> {
    section.refuse_unknown(&[WORKLOAD_API_SETTINGS], |_| None)?;
    Ok(WorkloadApiSettings {
        socket: section
            .required(
                "address",
                "the socket of the Workload API, such as unix:///run/spire/agent/public/api.sock",
            )?
            .parsed(rules::workload_api_socket)?,
        spiffe_id: section.parsed("spiffe_id", SpiffeId::new)?,
    })
}
