//! The endpoint that gives credentials to a container: ECS, or the pod identity agent of EKS.
//!
//! <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::{HeaderMap, HeaderValue, Method, header::AUTHORIZATION};
use url::{Host, Url};
use zeroize::Zeroizing;

use super::{SigningCredentials, Unavailable};
use crate::{
    environment::{
        CONTAINER_FULL_URI, CONTAINER_RELATIVE_URI, CONTAINER_TOKEN, CONTAINER_TOKEN_FILE, Environment,
    },
    http_client::HttpClient,
};

/// The endpoint of ECS, which relative URIs belong to.
const ECS: &str = "http://169.254.170.2";
/// The addresses outside the loopback that may be used without TLS: ECS, and EKS with IPv4 and IPv6.
const WITHOUT_TLS: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
];

pub(super) async fn read(
    environment: &Environment,
    http: &HttpClient,
) -> Result<SigningCredentials, Unavailable> {
    let url = url(environment.get(CONTAINER_RELATIVE_URI), environment.get(CONTAINER_FULL_URI))?;
    let mut headers = HeaderMap::new();
    if let Some(token) = token(environment).await? {
        // A line break at the end of the file is not part of the token.
        let mut token = HeaderValue::from_bytes(token.trim_ascii()).map_err(|_| {
            Unavailable::failed("the authorization token has characters that are not allowed in a header")
        })?;
        token.set_sensitive(true);
        headers.insert(AUTHORIZATION, token);
    }
    let answer = http.send(Method::GET, url, headers).await.map_err(Unavailable::failed)?;
    SigningCredentials::from_json(&answer)
        .ok_or_else(|| Unavailable::failed("its answer has no temporary credentials"))
}

/// The file is preferred, and read at each login: the agent of EKS replaces it.
async fn token(environment: &Environment) -> Result<Option<Zeroizing<Vec<u8>>>, Unavailable> {
    let Some(file) = environment.get(CONTAINER_TOKEN_FILE) else {
        return Ok(environment.get(CONTAINER_TOKEN).map(|token| Zeroizing::new(token.as_bytes().to_vec())));
    };
    match tokio::fs::read(file).await {
        Ok(token) => Ok(Some(Zeroizing::new(token))),
        Err(error) => Err(Unavailable::failed(format!(
            "{CONTAINER_TOKEN_FILE} names {file}, which cannot be read: {error}"
        ))),
    }
}

fn url(relative: Option<&str>, full: Option<&str>) -> Result<Url, Unavailable> {
    if let Some(path) = relative {
        // Otherwise the text could replace the host: `@example.com/`.
        let url = Some(path)
            .filter(|path| path.starts_with('/'))
            .and_then(|path| Url::parse(&format!("{ECS}{path}")).ok());
        return url
            .ok_or_else(|| Unavailable::failed(format!("{CONTAINER_RELATIVE_URI} must start with a slash")));
    }
    let Some(full) = full else {
        return Err(Unavailable::NotConfigured(format!(
            "neither {CONTAINER_RELATIVE_URI} nor {CONTAINER_FULL_URI} is set"
        )));
    };
    let refused = || {
        Unavailable::failed(format!(
            "{CONTAINER_FULL_URI} must start with https://, or with http:// and the address of the loopback, of ECS \
             (169.254.170.2) or of EKS (169.254.170.23, fd00:ec2::23)"
        ))
    };
    let mut url = Url::parse(full).map_err(|_| refused())?;
    let is_allowed = |ip: IpAddr| ip.is_loopback() || WITHOUT_TLS.contains(&ip);
    let is_allowed = match (url.scheme(), url.host()) {
        ("https", Some(_)) => true,
        ("http", Some(Host::Ipv4(ip))) => is_allowed(ip.into()),
        ("http", Some(Host::Ipv6(ip))) => is_allowed(ip.into()),
        // A name could resolve to any address, so this one is not resolved.
        ("http", Some(Host::Domain("localhost"))) => url.set_ip_host(Ipv4Addr::LOCALHOST.into()).is_ok(),
        _ => false,
    };
    if is_allowed { Ok(url) } else { Err(refused()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_only_from_this_machine_or_with_tls() {
        for (given, used) in [
            ("http://127.0.0.1:9911/creds?x=1", "http://127.0.0.1:9911/creds?x=1"),
            ("http://[::1]/c", "http://[::1]/c"),
            ("http://localhost:80/c", "http://127.0.0.1/c"),
            ("http://169.254.170.2/c", "http://169.254.170.2/c"),
            ("http://169.254.170.23/v1/credentials", "http://169.254.170.23/v1/credentials"),
            ("http://[fd00:ec2::23]/v1/credentials", "http://[fd00:ec2::23]/v1/credentials"),
            ("https://credentials.example.com/c", "https://credentials.example.com/c"),
        ] {
            assert_eq!(url(None, Some(given)).ok().unwrap().as_str(), used);
        }
        for refused in [
            "http://example.com/",
            "http://169.254.169.254/",
            "http://localhost.example.com/",
            "ftp://127.0.0.1/",
            "/c",
        ] {
            assert!(matches!(url(None, Some(refused)), Err(Unavailable::Failed(_))), "{refused}");
        }
    }

    #[test]
    fn a_relative_uri_belongs_to_ecs_and_cannot_name_another_host() {
        let found = url(Some("/v2/credentials/1"), Some("https://example.com/")).ok().unwrap();
        assert_eq!(found.as_str(), "http://169.254.170.2/v2/credentials/1");
        assert!(matches!(url(Some("@example.com/"), None), Err(Unavailable::Failed(_))));
        assert!(matches!(url(None, None), Err(Unavailable::NotConfigured(_))));
    }
}
