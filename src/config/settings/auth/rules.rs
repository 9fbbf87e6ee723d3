//! The rules for single values of `vault.auth`.

use std::path::PathBuf;

use transit_client::{
    key::{MountPath, Namespace},
    rule::BrokenRule,
};

use crate::config::settings::absolute_path;

/// The longest name, in bytes.
const MAX_NAME_BYTES: usize = 512;

/// Parses the path of a login mount, with or without `auth/` before it.
pub(in crate::config) fn mount(text: &str) -> Result<MountPath, BrokenRule> {
    let text = text.trim().trim_matches('/');
    MountPath::new(text.strip_prefix("auth/").unwrap_or(text))
}

/// Parses a name of a role, an audience or a server: visible ASCII, which is valid in JSON and in a header.
pub(in crate::config) fn name(text: &str) -> Result<String, BrokenRule> {
    if text.is_empty() {
        Err(BrokenRule("must not be empty"))
    } else if text.len() > MAX_NAME_BYTES || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Err(BrokenRule("must be at most 512 visible ASCII characters without spaces"))
    } else {
        Ok(text.to_owned())
    }
}

/// Parses the name of a user, which is one segment of the path of the login.
pub(in crate::config) fn username(text: &str) -> Result<String, BrokenRule> {
    let segment = MountPath::new(text)?;
    if segment.as_str() != text || text.contains('/') || text.len() > MAX_NAME_BYTES {
        return Err(BrokenRule("must be one segment of a path, without slashes"));
    }
    Ok(text.to_owned())
}

/// Parses the name of a region of AWS. It becomes a part of the host name of STS.
pub(in crate::config) fn region(text: &str) -> Result<String, BrokenRule> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_label = !text.is_empty() && text.len() <= 63 && !text.starts_with('-') && !text.ends_with('-');
    if is_label && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err(BrokenRule("must be a region, such as eu-central-1"))
    }
}

/// Parses the address of a Workload API, such as `unix:///run/spire/agent/public/api.sock`.
pub(in crate::config) fn workload_api_socket(text: &str) -> Result<PathBuf, BrokenRule> {
    let path = text.strip_prefix("unix:").map(|rest| rest.strip_prefix("//").unwrap_or(rest));
    path.and_then(|path| absolute_path(path).ok()).ok_or(BrokenRule(
        "must be the address of a unix socket, such as unix:///run/spire/agent/public/api.sock",
    ))
}

/// Parses Trousseau's `authpath`, everything before `/approle/login` or `/cert/login`. Returns the mount of `method`
/// below `auth/`, and the namespace of the login: Vault reads the segments before `auth` as a namespace below that of
/// the request.
pub(in crate::config) fn trousseau_place(
    text: &str,
    method: &str,
    namespace: &Namespace,
) -> Result<(MountPath, Namespace), BrokenRule> {
    let segments: Vec<&str> = text.trim_matches('/').split('/').collect();
    let index = segments.iter().position(|segment| *segment == "auth").ok_or(BrokenRule(
        "must be auth, or a path that contains it: it is the path before /approle/login",
    ))?;
    let (before, from_auth) = segments.split_at(index);
    let mount: Vec<&str> = from_auth.iter().skip(1).copied().chain([method]).collect();
    let outer = Some(namespace.as_str()).filter(|outer| !outer.is_empty());
    let namespace: Vec<&str> = outer.into_iter().chain(before.iter().copied()).collect();
    Ok((MountPath::new(&mount.join("/"))?, Namespace::new(&namespace.join("/"))?))
}
