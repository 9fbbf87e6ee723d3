//! The rules of each setting.

use transit_client::{
    endpoint::Address,
    key::{KeyName, KeyNames, KeyRef, MountPath, Namespace},
    token::Token,
};

use super::{
    ParseOptions, auth,
    section::{
        Broken, ENCRYPTION_SETTINGS, FLAT, KEY_SETTINGS, SETTINGS, Section, TLS_SETTINGS, Value, WRAPPED,
    },
    tree::YamlNode,
    trousseau,
};
use crate::config::settings::{
    Config, CredentialSettings, DEFAULT_CONNECT_TIMEOUT, Encryption, LocalKekLimits, TlsFiles, absolute_path,
    age, connect_timeout, server_name,
};

/// Returns the config that the root of the file contains, in one of the two shapes.
pub(super) fn config(
    root: &Section<'_>,
    options: ParseOptions,
) -> Result<Config<CredentialSettings>, Broken> {
    if let Some(provider) = root.find("provider") {
        let text = provider.string()?;
        if !["vault", "openbao", "bao"].iter().any(|known| text.eq_ignore_ascii_case(known)) {
            return Err(provider.broken("must be vault, openbao or bao"));
        }
    }
    let encryption = encryption(root)?;
    let hint_tls = |key: &str| TLS_SETTINGS.contains(&key).then_some("belongs below tls:".into());
    match root.entry("vault") {
        Some(wrapped) => {
            root.refuse_unknown(&[WRAPPED], |key| {
                SETTINGS.contains(&key).then_some("belongs below vault:".into())
            })?;
            let section = wrapped.section()?;
            section.refuse_unknown(&[SETTINGS], hint_tls)?;
            settings(&section, encryption, options)
        }
        None => {
            root.refuse_unknown(&[SETTINGS, FLAT], hint_tls)?;
            settings(root, encryption, options)
        }
    }
}

/// In both shapes, `encryption:` is a key of the root: it configures the plugin, not the connection to Vault.
fn encryption(root: &Section<'_>) -> Result<Encryption, Broken> {
    let Some(section) = root.find("encryption").map(|value| value.section()).transpose()? else {
        return Ok(Encryption::default());
    };
    section.refuse_unknown(&[ENCRYPTION_SETTINGS], |_| None)?;
    let mode = section.required("mode", "transit or local-kek")?;
    let default = LocalKekLimits::default();
    let limits = LocalKekLimits {
        max_age: section.parsed("max_age", age)?.unwrap_or(default.max_age),
        max_age_in_outage: section.parsed("max_age_in_outage", age)?.unwrap_or(default.max_age_in_outage),
        renew_after: section.parsed("renew_after", age)?.unwrap_or(default.renew_after),
        renew_after_uses: match section.find("renew_after_uses") {
            Some(uses) => uses.count()?,
            None => default.renew_after_uses,
        },
    };
    if limits.max_age_in_outage < limits.max_age {
        let rule = "max_age_in_outage must not be shorter than max_age (default: 1h)";
        return Err(Broken { steps: section.steps.clone(), rule: format!("{}: {rule}", section.name) });
    }
    match mode.string()? {
        text if text.eq_ignore_ascii_case("local-kek") => Ok(Encryption::LocalKek(limits)),
        text if text.eq_ignore_ascii_case("transit") => Ok(Encryption::Transit),
        _ => Err(mode.broken("must be transit or local-kek")),
    }
}

fn settings(
    section: &Section<'_>,
    encryption: Encryption,
    options: ParseOptions,
) -> Result<Config<CredentialSettings>, Broken> {
    let mut warnings = Vec::new();
    let namespace = section.parsed("namespace", Namespace::new)?.unwrap_or_default();
    let credentials = credentials(section, &namespace, &mut warnings)?;
    let to_agent = credentials == CredentialSettings::Agent;
    let addresses = addresses(section, options, to_agent, &mut warnings)?;
    let mount = section.parsed("transitpath", MountPath::new)?.unwrap_or_default();
    Ok(Config {
        addresses,
        connect_timeout: section
            .parsed("connect_timeout", connect_timeout)?
            .unwrap_or(DEFAULT_CONNECT_TIMEOUT),
        keys: keys(section, &mount, &namespace)?,
        namespace,
        tls: tls(section)?,
        credentials,
        encryption,
        warnings,
    })
}

fn addresses(
    section: &Section<'_>,
    options: ParseOptions,
    to_agent: bool,
    warnings: &mut Vec<String>,
) -> Result<Vec<Address>, Broken> {
    let (place, values) = match (section.find("addresses"), section.find("address")) {
        (Some(_), Some(single)) => {
            return Err(single.broken("cannot be used together with addresses: keep one of them"));
        }
        (Some(several), None) => {
            let values = several.one_or_more()?;
            (several, values)
        }
        (None, Some(single)) => (single.clone(), vec![single]),
        (None, None) => {
            let key = if section.entry("addresses").is_some() { "addresses" } else { "address" };
            return Err(section.absent(key, "the address of Vault, such as https://vault:8200"));
        }
    };
    let mut addresses = Vec::new();
    for value in values {
        let address = value.parsed(|text| match to_agent {
            true => Address::of_agent(text, options.allow_http),
            false => Address::new(text, options.allow_http),
        })?;
        if addresses.contains(&address) {
            warnings.push(format!("{}: contains an address twice; the second one is ignored", place.name));
        } else {
            addresses.push(address);
        }
    }
    if addresses.is_empty() { Err(place.broken("must contain at least one address")) } else { Ok(addresses) }
}

/// `mount` and `namespace` apply to entries without their own.
fn keys(section: &Section<'_>, mount: &MountPath, namespace: &Namespace) -> Result<KeyNames, Broken> {
    let place = section.required("keynames", "the names of the Transit keys; the first one encrypts")?;
    let mut keys = Vec::new();
    if let YamlNode::Str(names) = place.node
        && names.contains(',')
    {
        // Viper reads a string with commas as a list. The name of a key contains no comma.
        for name in names.split(',') {
            let name = KeyName::new(name).map_err(|rule| place.broken(rule))?;
            keys.push(KeyRef::new(name, mount.clone(), namespace.clone()));
        }
        return KeyNames::new(keys).map_err(|rule| place.broken(rule));
    }
    for value in place.one_or_more()? {
        keys.push(key(&value, mount, namespace)?);
    }
    KeyNames::new(keys).map_err(|rule| place.broken(rule))
}

/// A name, or a mapping with a name and the location of the key.
fn key(value: &Value<'_>, mount: &MountPath, namespace: &Namespace) -> Result<KeyRef, Broken> {
    if !matches!(value.node, YamlNode::Map(_)) {
        return Ok(KeyRef::new(value.parsed(KeyName::new)?, mount.clone(), namespace.clone()));
    }
    let section = value.section()?;
    section.refuse_unknown(&[KEY_SETTINGS], |key| {
        (key == "transitpath").then_some("is called mount in an entry of keynames".into())
    })?;
    let name = section.required("name", "the name of a Transit key")?.parsed(KeyName::new)?;
    let own_mount = section.parsed("mount", MountPath::new)?;
    let own_namespace = section.parsed("namespace", Namespace::new)?;
    if own_mount.is_none() && own_namespace.is_none() {
        return Ok(KeyRef::new(name, mount.clone(), namespace.clone()));
    }
    Ok(KeyRef::in_own_mount(
        name,
        own_mount.unwrap_or_else(|| mount.clone()),
        own_namespace.unwrap_or_else(|| namespace.clone()),
    ))
}

fn tls(section: &Section<'_>) -> Result<TlsFiles, Broken> {
    let inner = section.find("tls").map(|tls| tls.section()).transpose()?;
    if let Some(inner) = &inner {
        inner.refuse_unknown(&[TLS_SETTINGS], |_| None)?;
    }
    let find = |key| inner.as_ref().and_then(|inner| inner.find(key));
    let files = TlsFiles {
        ca_file: one_spelling(find("ca_file"), section.find("vaultcacert"))?
            .map(|value| value.parsed(absolute_path))
            .transpose()?,
        server_name: one_spelling(find("server_name"), section.find("tlsservername"))?
            .map(|value| value.parsed(server_name))
            .transpose()?,
        client_cert_file: find("client_cert_file").map(|value| value.parsed(absolute_path)).transpose()?,
        client_key_file: find("client_key_file").map(|value| value.parsed(absolute_path)).transpose()?,
    };
    match (find("client_cert_file"), find("client_key_file")) {
        (Some(single), None) => Err(single.broken("requires client_key_file")),
        (None, Some(single)) => Err(single.broken("requires client_cert_file")),
        _ => Ok(files),
    }
}

/// Accepts a setting under its name or under Trousseau's, but not under both.
fn one_spelling<'a>(
    value: Option<Value<'a>>,
    trousseau: Option<Value<'a>>,
) -> Result<Option<Value<'a>>, Broken> {
    match (value, trousseau) {
        (Some(value), Some(trousseau)) => {
            Err(trousseau.broken(format!("means the same as {}: keep one of them", value.name)))
        }
        (value, trousseau) => Ok(value.or(trousseau)),
    }
}

/// The token has precedence, then the `auth:` block, then Trousseau's logins in Trousseau's order. The others are
/// ignored with a warning.
fn credentials(
    section: &Section<'_>,
    namespace: &Namespace,
    warnings: &mut Vec<String>,
) -> Result<CredentialSettings, Broken> {
    section.find("authpath").map(|value| value.string()).transpose()?;
    let token = section.parsed("token", Token::new)?;
    let auth = section.find("auth");
    let login = auth.as_ref().map(|auth| auth::credentials(&auth.section()?, namespace)).transpose()?;
    let by_rank = [
        auth.map(|auth| vec![auth.name]).unwrap_or_default(),
        trousseau::present(section, trousseau::CERT)?,
        trousseau::present(section, trousseau::APP_ROLE)?,
    ];
    let rank = by_rank.iter().position(|names| !names.is_empty());
    let (credentials, used, reason) = match (token, login, rank) {
        (Some(token), ..) => (CredentialSettings::Token(token), None, "a token"),
        (None, Some(login), _) => (login, rank, "another login"),
        (None, None, Some(1)) => (trousseau::cert(section, namespace)?, rank, "another login"),
        (None, None, Some(_)) => (trousseau::app_role(section, namespace)?, rank, "another login"),
        (None, None, None) => {
            return Err(section.absent("token", "either token or auth is required"));
        }
    };
    for (rank, names) in by_rank.iter().enumerate() {
        for name in names.iter().filter(|_| Some(rank) != used) {
            warnings.push(format!("{name}: is ignored because {reason} is configured too"));
        }
    }
    Ok(credentials)
}
