//! The shared credentials file.
//!
//! <https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html>

use std::{
    io,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::{SigningCredentials, Unavailable};
use crate::environment::{Environment, HOME, PROFILE, SHARED_CREDENTIALS_FILE};

const DEFAULT_PROFILE: &str = "default";

pub(super) async fn read(environment: &Environment) -> Result<SigningCredentials, Unavailable> {
    let named = environment.get(SHARED_CREDENTIALS_FILE).map(PathBuf::from);
    let in_home = || environment.get(HOME).map(|home| Path::new(home).join(".aws/credentials"));
    let is_named = named.is_some();
    let Some(path) = named.or_else(in_home) else {
        return Err(Unavailable::NotConfigured(format!(
            "neither {SHARED_CREDENTIALS_FILE} nor {HOME} is set"
        )));
    };
    let profile = environment.get(PROFILE);
    let text = match tokio::fs::read(&path).await {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_named && profile.is_none() => {
            return Err(Unavailable::NotConfigured(format!("{} does not exist", path.display())));
        }
        Err(error) => return Err(Unavailable::failed(format!("{} cannot be read: {error}", path.display()))),
    };
    let text = std::str::from_utf8(&text)
        .map_err(|_| Unavailable::failed(format!("{} is not UTF-8", path.display())))?;
    let name = profile.unwrap_or(DEFAULT_PROFILE);
    let Some(found) = Profile::find(text, name) else {
        let reason = format!("{} has no profile {name}", path.display());
        return Err(match profile {
            Some(_) => Unavailable::failed(reason),
            None => Unavailable::NotConfigured(reason),
        });
    };
    match (found.access_key_id, found.secret_access_key) {
        (Some(id), Some(secret)) => Ok(SigningCredentials::new(id, secret, found.session_token)),
        _ => Err(Unavailable::failed(format!(
            "the profile {name} in {} needs aws_access_key_id and aws_secret_access_key; other kinds of profiles \
             (role_arn, credential_process, sso_session) are not supported",
            path.display()
        ))),
    }
}

/// The values of a profile. Empty ones count as absent.
#[derive(Default)]
struct Profile<'a> {
    access_key_id: Option<&'a str>,
    secret_access_key: Option<&'a str>,
    session_token: Option<&'a str>,
}

impl<'a> Profile<'a> {
    /// If a profile or a key exists more than once, the last value counts.
    fn find(text: &'a str, name: &str) -> Option<Self> {
        let mut found: Option<Self> = None;
        let mut is_inside = false;
        for line in text.lines() {
            let line = line.trim();
            if line.starts_with(['#', ';']) {
                continue;
            }
            if let Some(section) = line.strip_prefix('[') {
                is_inside = section.split(']').next().is_some_and(|section| section.trim() == name);
                if is_inside {
                    found.get_or_insert_default();
                }
            } else if is_inside
                && let (Some(profile), Some((key, value))) = (&mut found, line.split_once('='))
            {
                let comment = value.find(" #").into_iter().chain(value.find(" ;")).min();
                let value = comment.and_then(|at| value.get(..at)).unwrap_or(value).trim();
                let value = Some(value).filter(|value| !value.is_empty());
                match key.trim().to_ascii_lowercase().as_str() {
                    "aws_access_key_id" => profile.access_key_id = value,
                    "aws_secret_access_key" => profile.secret_access_key = value,
                    "aws_session_token" => profile.session_token = value,
                    _ => {}
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_as_the_sdks_read_it() {
        let text = "# [node]\n[default]\naws_access_key_id = A\n[node]\n AWS_ACCESS_KEY_ID=B ; the node\naws_secret_access_key = s/+=x #1\nregion = x\n[ other ]\naws_session_token = t\n[node]\naws_session_token =\n";
        let values = |name: &str| {
            Profile::find(text, name)
                .map(|profile| (profile.access_key_id, profile.secret_access_key, profile.session_token))
        };
        assert_eq!(values("node"), Some((Some("B"), Some("s/+=x"), None)));
        assert_eq!(values("default"), Some((Some("A"), None, None)));
        assert_eq!(values("other"), Some((None, None, Some("t"))));
        assert_eq!(values("absent"), None);
    }
}
