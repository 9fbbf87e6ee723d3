//! A stand-in for the auth method `spiffe` of Vault Enterprise 1.21, which no open source server has.
//!
//! It checks what the documentation says: <https://developer.hashicorp.com/vault/api-docs/auth/spiffe>. It answers with
//! a token of a real server, and forwards all other requests to that server. It says `permission denied` for every
//! refusal: the documentation has no messages, and users report this one.

use std::{
    fs,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};
use reqwest::Client;
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_rustls::TlsAcceptor;
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

use super::authority::{SpiffeAuthority, now};
use crate::{
    net::{
        http::{Answer, answer, forward},
        port,
    },
    vault::server::{Bao, POLICY},
};

/// The settings of the mount `auth/spiffe` and of its only role.
#[derive(Clone, Debug)]
pub struct SpiffeAuthOptions {
    /// The allowed audiences of JWT-SVIDs. None is allowed if it is empty.
    pub audience: Vec<String>,
    /// Whether the mount has `passthrough_request_headers=Authorization`.
    pub passthrough: bool,
    pub role: String,
    /// Options of the tokens, as for `auth/token/create`.
    pub token: Value,
    /// The allowed paths of SPIFFE IDs. `+` matches one segment, and `*` at the end matches the rest.
    pub workload_id_patterns: Vec<String>,
}

impl Default for SpiffeAuthOptions {
    fn default() -> Self {
        Self {
            audience: vec!["vault".into()],
            passthrough: true,
            role: "transit-kms".into(),
            token: json!({"ttl": "1h"}),
            workload_id_patterns: vec!["kms/*".into()],
        }
    }
}

/// An HTTPS server with `auth/spiffe` in front of a real server. It stops when this value is dropped.
pub struct SpiffeAuthMethod {
    mount: Arc<Mount>,
    port: u16,
    serving: JoinHandle<()>,
}

struct Mount {
    bao: String,
    chains: Arc<dyn ClientCertVerifier>,
    client: Client,
    jwt_key: Vec<u8>,
    logins: Mutex<Vec<String>>,
    options: SpiffeAuthOptions,
    root_token: String,
    trust_domain: String,
}

impl SpiffeAuthMethod {
    /// Starts it in front of `bao`, for SVIDs of `authority`. Its certificate is of the authority of `bao`.
    pub async fn in_front_of(bao: &Bao, authority: &SpiffeAuthority, options: SpiffeAuthOptions) -> Self {
        let provider = Arc::new(default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(authority.ca_der())).unwrap();
        let chains = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .unwrap();
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let (chain, key) = bao.authority().issue("vault-enterprise", params);
        let (chain, key) = (fs::read(chain).unwrap(), fs::read(key).unwrap());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(Arc::new(AnyCertificate(Arc::clone(&chains))))
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(&chain).unwrap()],
                PrivateKeyDer::from_pem_slice(&key).unwrap(),
            )
            .unwrap();
        let mount = Arc::new(Mount {
            bao: bao.address(),
            chains,
            client: bao.http().clone(),
            jwt_key: authority.jwt_public_key().to_vec(),
            logins: Mutex::default(),
            options,
            root_token: bao.root_token().to_owned(),
            trust_domain: authority.trust_domain().to_owned(),
        });
        let port = port::unused();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let serving = tokio::spawn(accept(listener, TlsAcceptor::from(Arc::new(tls)), Arc::clone(&mount)));
        Self { mount, port, serving }
    }

    /// `https://127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The SPIFFE IDs of the successful logins so far.
    pub fn logins(&self) -> Vec<String> {
        self.mount.logins.lock().unwrap().clone()
    }
}

impl Drop for SpiffeAuthMethod {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, mount: Arc<Mount>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, mount) = (acceptor.clone(), Arc::clone(&mount));
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let chain: Vec<_> = stream
                .get_ref()
                .1
                .peer_certificates()
                .unwrap_or_default()
                .iter()
                .map(|it| it.clone().into_owned())
                .collect();
            let chain = Arc::new(chain);
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let (mount, chain) = (Arc::clone(&mount), Arc::clone(&chain));
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    Ok::<_, hyper::Error>(mount.serve(Request::from_parts(parts, body), &chain).await)
                }
            });
            let http = hyper::server::conn::http1::Builder::new();
            drop(http.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

impl Mount {
    async fn serve(&self, request: Request<Bytes>, chain: &[CertificateDer<'static>]) -> Answer {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        if path == "/v1/auth/spiffe/login" && [Method::POST, Method::PUT].contains(request.method()) {
            return match self.verified(&request, chain) {
                Some(spiffe_id) => self.log_in(spiffe_id).await,
                None => answer(StatusCode::FORBIDDEN, json!({"errors": ["permission denied"]}).to_string()),
            };
        }
        let url = format!("{}{path}", self.bao);
        forward(&self.client, &url, request).await
    }

    /// The SPIFFE ID of the SVID that the request presents, if it may log in.
    fn verified(&self, request: &Request<Bytes>, chain: &[CertificateDer<'static>]) -> Option<String> {
        let body: Value = serde_json::from_slice(request.body()).ok()?;
        let role = body["role"].as_str().unwrap_or_default();
        if !role.is_empty() && role != self.options.role {
            return None;
        }
        let bearer = request.headers().get(header::AUTHORIZATION).filter(|_| self.options.passthrough);
        let jwt = bearer.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let spiffe_id = match (body["type"].as_str().unwrap_or("auto"), jwt) {
            ("auto" | "jwt", Some(jwt)) => self.verified_jwt(jwt)?,
            ("auto" | "cert", _) => self.verified_certificate(chain)?,
            _ => return None,
        };
        let path =
            spiffe_id.strip_prefix("spiffe://")?.strip_prefix(&self.trust_domain)?.strip_prefix('/')?;
        let allowed = self.options.workload_id_patterns.iter().any(|pattern| matches(pattern, path));
        allowed.then_some(spiffe_id)
    }

    fn verified_jwt(&self, jwt: &str) -> Option<String> {
        let (signed, signature) = jwt.rsplit_once('.')?;
        let (head, claims) = signed.split_once('.')?;
        let json = |part: &str| serde_json::from_slice::<Value>(&BASE64URL.decode(part).ok()?).ok();
        let (head, claims) = (json(head)?, json(claims)?);
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.jwt_key);
        let signature = BASE64URL.decode(signature).ok()?;
        let is_signed = head["alg"] == "ES256" && key.verify(signed.as_bytes(), &signature).is_ok();
        let is_current = claims["exp"].as_u64()? > now().as_secs();
        let audience = claims["aud"].as_array()?;
        let is_for_this = audience.iter().any(|it| self.options.audience.iter().any(|allowed| it == allowed));
        (is_signed && is_current && is_for_this).then(|| claims["sub"].as_str().map(str::to_owned))?
    }

    fn verified_certificate(&self, chain: &[CertificateDer<'static>]) -> Option<String> {
        let (leaf, intermediates) = chain.split_first()?;
        self.chains.verify_client_cert(leaf, intermediates, UnixTime::since_unix_epoch(now())).ok()?;
        let (_, leaf) = parse_x509_certificate(leaf).ok()?;
        let names = leaf.subject_alternative_name().ok()??;
        names.value.general_names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        })
    }

    /// The answer of a login, with a new token of the real server.
    async fn log_in(&self, spiffe_id: String) -> Answer {
        let mut token = json!({
            "meta": {"role": self.options.role, "spiffe_id": spiffe_id, "trust_domain": self.trust_domain},
            "no_default_policy": true, "no_parent": true, "policies": [POLICY],
        });
        for (name, value) in self.options.token.as_object().unwrap() {
            token[name] = value.clone();
        }
        let request =
            Request::post("/").header("X-Vault-Token", &self.root_token).body(token.to_string().into());
        let url = format!("{}/v1/auth/token/create", self.bao);
        let answer = forward(&self.client, &url, request.unwrap()).await;
        if answer.status().is_success() {
            self.logins.lock().unwrap().push(spiffe_id);
        }
        answer
    }
}

/// Whether a path matches a pattern of a role.
fn matches(pattern: &str, path: &str) -> bool {
    let (mut pattern, mut path) = (pattern.trim_start_matches('/').split('/'), path.split('/'));
    loop {
        match (pattern.next(), path.next()) {
            (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(segment)) => match wanted.strip_suffix('*') {
                Some(prefix) => return segment.starts_with(prefix),
                None if wanted == segment => {}
                None => return false,
            },
            (None, Some(_)) | (Some(_), None) => return false,
        }
    }
}

/// Asks for a client certificate and accepts any or none, as a listener of Vault does. The auth method verifies it.
#[derive(Debug)]
struct AnyCertificate(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_the_documentation_says() {
        for (pattern, path) in [
            ("service1", "service1"),
            ("/kms/a", "kms/a"),
            ("team1/*", "team1/a/b"),
            ("team2/+/a", "team2/x/a"),
        ] {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in
            [("service1", "service2"), ("kms", "kms/a"), ("team1/*", "team2/a"), ("team2/+/a", "team2/x/y/a")]
        {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }
}
