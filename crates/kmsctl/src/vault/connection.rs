//! Where Vault is and which token to use: flags, and the variables of the command lines of Vault and OpenBao.

use std::{
    env,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use error_text::root_cause;
use reqwest::{
    Certificate, Client,
    header::{HeaderMap, HeaderName, HeaderValue},
    redirect, tls,
};
use url::{Host, Url};

use super::{SecretText, Vault, X_VAULT_TOKEN};
use crate::{command_error::CommandError, files};

const DEFAULT_ADDRESS: &str = "https://127.0.0.1:8200";
const MAX_CERTIFICATE_BYTES: usize = 1024 * 1024;
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// The time for one request, connecting included.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Where `vault login` and `bao login` keep the token, below the home directory.
const TOKEN_FILE: &str = ".vault-token";

/// How to reach Vault. The token is never an argument, because other users can see the arguments of a process.
#[derive(Args, Debug)]
#[command(next_help_heading = "Vault or OpenBao")]
pub(crate) struct VaultArgs {
    /// The address of Vault [default: BAO_ADDR, VAULT_ADDR, https://127.0.0.1:8200]
    ///
    /// A plain http:// address must be on this machine.
    #[arg(long, value_name = "URL")]
    address: Option<String>,

    /// The certificates of the authorities that may have issued Vault's certificate, in PEM [default: BAO_CACERT,
    /// VAULT_CACERT, the authorities of this machine]
    #[arg(long, value_name = "PATH")]
    ca_cert: Option<PathBuf>,

    /// The namespace of all requests [default: BAO_NAMESPACE, VAULT_NAMESPACE]
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Option<String>,

    /// The file with your token. With -, it is read from standard input [default: BAO_TOKEN, VAULT_TOKEN,
    /// ~/.vault-token]
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
}

impl VaultArgs {
    /// Prepares a connection. It sends nothing.
    pub(crate) fn connect(&self) -> Result<Vault, CommandError> {
        let text = self.address.clone().or_else(|| variable("ADDR"));
        let address =
            parse_address(text.as_deref().unwrap_or(DEFAULT_ADDRESS)).map_err(CommandError::Usage)?;
        let token = self.token()?.to_header().map_err(|_| {
            CommandError::Usage(
                "the token contains a character that no token has: is it the right file?".into(),
            )
        })?;
        let mut headers = HeaderMap::new();
        headers.insert(X_VAULT_TOKEN, token);
        headers.insert(HeaderName::from_static("x-vault-request"), HeaderValue::from_static("true"));
        if let Some(namespace) = self.namespace.clone().or_else(|| variable("NAMESPACE")) {
            let namespace = HeaderValue::from_str(namespace.trim_matches('/')).map_err(|_| {
                CommandError::Usage("the namespace contains a character that no namespace has".into())
            })?;
            headers.insert(HeaderName::from_static("x-vault-namespace"), namespace);
        }
        #[expect(clippy::disallowed_methods, reason = "the client uses no proxy: see no_proxy below")]
        let mut builder = Client::builder()
            .user_agent(concat!("transit-kmsctl/", env!("CARGO_PKG_VERSION")))
            // A redirect leads to another host, and the token would go there.
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .tls_version_min(tls::Version::TLS_1_2)
            .timeout(TIMEOUT);
        if let Some(path) = self.ca_cert.clone().or_else(|| variable("CACERT").map(PathBuf::from)) {
            builder = builder.tls_certs_only(certificates(&path)?);
        }
        let client = builder.build().map_err(|error| CommandError::Usage(root_cause(&error)))?;
        Ok(Vault { address, client, headers })
    }

    fn token(&self) -> Result<SecretText, CommandError> {
        if let Some(path) = &self.token_file {
            return read_token(path);
        }
        if let Some(token) = variable("TOKEN") {
            return Ok(SecretText::from(token));
        }
        let home = env::var_os("HOME").map(|home| Path::new(&home).join(TOKEN_FILE));
        match home.filter(|path| path.exists()) {
            Some(path) => read_token(&path),
            None => Err(CommandError::Usage(
                "there is no token: set VAULT_TOKEN or BAO_TOKEN, pass --token-file, or run `vault login`"
                    .into(),
            )),
        }
    }
}

/// The value of this variable of OpenBao's command line, or of Vault's. An empty value counts as none.
fn variable(name: &str) -> Option<String> {
    ["BAO_", "VAULT_"]
        .iter()
        .filter_map(|prefix| env::var(format!("{prefix}{name}")).ok())
        .find(|value| !value.is_empty())
}

fn read_token(path: &Path) -> Result<SecretText, CommandError> {
    let bytes = files::read(path, MAX_TOKEN_BYTES)?;
    match str::from_utf8(&bytes).map(str::trim) {
        Ok(token) if !token.is_empty() => Ok(SecretText::from(token.to_owned())),
        _ => Err(CommandError::Usage(format!("{} has no token", path.display()))),
    }
}

fn certificates(path: &Path) -> Result<Vec<Certificate>, CommandError> {
    let pem = files::read(path, MAX_CERTIFICATE_BYTES)?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(CommandError::Usage(format!("{} has no certificate in PEM", path.display()))),
    }
}

fn parse_address(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| {
        format!(
            "the address of Vault is not a URL: {error}. Write for example https://vault.example.com:8200"
        )
    })?;
    let is_local = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => IpAddr::from(ip).is_loopback(),
        Some(Host::Ipv6(ip)) => IpAddr::from(ip).is_loopback(),
        None => false,
    };
    match url.scheme() {
        "https" => {}
        "http" if is_local => {}
        "http" => {
            return Err(
                "the address of Vault is http://, and the token would travel in clear: use https://".into()
            );
        }
        _ => return Err("the address of Vault must start with https://".into()),
    }
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err("the address of Vault must have only a host, a port and a path".into());
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::parse_address;

    #[test]
    fn the_token_is_not_sent_in_clear_to_another_machine() {
        for good in
            ["https://vault.example.com", "http://127.0.0.1:8200", "http://[::1]:8200", "http://localhost/x"]
        {
            assert!(parse_address(good).is_ok(), "{good}");
        }
        for bad in
            ["http://vault.example.com", "http://10.0.0.1:8200", "unix:///x", "vault:8200", "https://a@b", ""]
        {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
    }
}
