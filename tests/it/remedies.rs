//! Messages for operators when Vault cannot be used: a table of situations and the words that name the cause and the
//! remedy. Each situation is produced with a real server, and its message read from a real daemon.
//!
//! The messages are in `crates/transit-client/src/vault/tls.rs` and in `failover/classify/table.rs` beside it.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::join_all;
use rcgen::{CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd};
use serde_json::{Value, json};
use testkit::{
    Bao, BaoOptions, ConfigFile, Daemon, DaemonOptions, Fault, FaultProxy, KEY, MOUNT, POLICY,
    authority::Authority, closed_address, config_file, eventually, login, policy, temp_dir,
};

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// A situation, and the expected words of the message.
struct Row {
    case: &'static str,
    content: ConfigFile,
    words: Vec<String>,
}

fn row<const N: usize>(case: &'static str, content: ConfigFile, words: [&str; N]) -> Row {
    Row { case, content, words: words.map(str::to_owned).into() }
}

/// Checks each row with its own daemon, all at the same time.
async fn check_all(rows: Vec<Row>) {
    join_all(rows.into_iter().map(read)).await;
}

async fn read(Row { case, content, words }: Row) {
    let dir = temp_dir("remedy-");
    let config = dir.path().join("config.yaml");
    config_file::by_rename(&config, &content.yaml());
    let daemon = Daemon::start_with(&config, DaemonOptions::arguments(["--allow-http"])).await;
    let why = eventually(&format!("{case}: {words:?}"), WAIT_TIMEOUT, async || {
        let (_, why) = daemon.admin("/readyz").await;
        if words.iter().all(|word| why.contains(word)) { Ok(why) } else { Err(why) }
    })
    .await;
    assert!(!why.trim_end().ends_with(':'), "{case}: {why}");
    daemon.assert_never_printed(&[&content.token]);
}

/// A certificate authority, and certificates with defects.
struct Certificates {
    authority: Authority,
    dir: PathBuf,
}

impl Certificates {
    /// The listener of the server's config for this certificate.
    fn listener(files: &(PathBuf, PathBuf)) -> Value {
        json!({ "tls_cert_file": files.0, "tls_key_file": files.1 })
    }

    /// A server certificate for the loopback, with a change.
    fn server(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        self.authority.issue(name, params)
    }

    /// A client certificate, with a change.
    fn client(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        self.authority.issue(name, params)
    }

    /// A self-signed certificate that is also an authority, as of `openssl req -x509`.
    fn self_signed_authority(&self) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let made = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let files = (self.dir.join("self-signed.pem"), self.dir.join("self-signed.key"));
        fs::write(&files.0, made.pem()).unwrap();
        fs::write(&files.1, made.key().serialize_pem()).unwrap();
        files
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[tokio::test]
async fn connection_errors_name_the_cause_and_the_remedy() {
    let dir = temp_dir("site-");
    let authority = Authority::new(dir.path());
    let certificates = Certificates { authority, dir: dir.path().to_owned() };
    fs::create_dir(dir.path().join("strangers")).unwrap();
    let stranger = Authority::new(&dir.path().join("strangers"));

    let self_signed = certificates.self_signed_authority();
    let long_ago = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 2, 3);
    };
    let good = certificates.server("good", |_| ());
    let asking = |version: &str| {
        let mut listener = Certificates::listener(&good);
        listener["tls_client_ca_file"] = json!(certificates.authority.file());
        listener["tls_require_and_verify_client_cert"] = json!(true);
        listener["tls_max_version"] = json!(version);
        listener
    };
    let listeners = [
        ("plain", json!({ "tls_disable": true })),
        ("good", Certificates::listener(&good)),
        ("self-signed", Certificates::listener(&self_signed)),
        (
            "no-san",
            Certificates::listener(&certificates.server("no-san", |params| params.subject_alt_names.clear())),
        ),
        (
            "other-name",
            Certificates::listener(&certificates.server("other-name", |params| {
                params.subject_alt_names =
                    CertificateParams::new(["vault.example".to_owned()]).unwrap().subject_alt_names;
            })),
        ),
        ("expired", Certificates::listener(&certificates.server("expired", long_ago))),
        (
            "early",
            Certificates::listener(&certificates.server("early", |params| {
                params.not_before = date_time_ymd(2090, 1, 1);
                params.not_after = date_time_ymd(2091, 1, 1);
            })),
        ),
        (
            "for-clients",
            Certificates::listener(&certificates.server("for-clients", |params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            })),
        ),
        ("asks", asking("tls13")),
        ("asks-1.2", asking("tls12")),
    ];
    let options = BaoOptions {
        listeners: listeners.iter().map(|(_, it)| it.clone()).collect(),
        ..BaoOptions::default()
    };
    let bao = Bao::start_with(options).await;
    let port =
        |name: &str| bao.port_of_listener(listeners.iter().position(|(known, _)| *known == name).unwrap());
    let trusting =
        ConfigFile { ca_file: certificates.authority.file(), ..ConfigFile::with_new_token(&bao).await };
    let to = |scheme: &str, name: &str| ConfigFile {
        addresses: vec![format!("{scheme}://127.0.0.1:{}", port(name))],
        ..trusting.clone()
    };
    let shown = |name: &str, certificate: (PathBuf, PathBuf)| ConfigFile {
        client_certificate: Some(certificate),
        ..to("https", name)
    };
    let trusted = |content: ConfigFile, ca_file: PathBuf| ConfigFile { ca_file, ..content };

    let client = certificates.client("client", |_| ());
    let other = certificates.client("other", |_| ());
    let expired = certificates.client("expired-client", long_ago);
    let server_only = certificates.client("server-only", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let strangers = stranger.client("strange");
    let ca = text(&certificates.authority.file());
    let damaged = "-----BEGIN CERTIFICATE-----\nMIIBszCCAVmgAwIBAgIU\n-----END CERTIFICATE-----\n";
    let not_base64 = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    // The kernel accepts connections, and no program answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_address = format!("https://{}", silent.local_addr().unwrap());

    check_all(vec![
        row("http to TLS", to("http", "good"), ["the port speaks TLS", "write https://"]),
        row("https to plain", to("https", "plain"), ["does not speak TLS", "listener with TLS", "http://"]),
        row(
            "a self-signed authority as the server's certificate",
            trusted(to("https", "self-signed"), self_signed.0.clone()),
            ["CaUsedAsEndEntity", "CA:TRUE", "issue one for the server (CA:FALSE)", "vault.tls.ca_file"],
        ),
        row("a common name only", to("https", "no-san"), ["subjectAltName", "(CN) does not count"]),
        row(
            "a wrong name",
            to("https", "other-name"),
            ["127.0.0.1", "vault.example", "set vault.tls.server_name"],
        ),
        row(
            "an unknown issuer",
            trusted(to("https", "good"), self_signed.0.clone()),
            ["UnknownIssuer", "vault.tls.ca_file must hold the authority", "intermediate"],
        ),
        row(
            "another authority of the same name",
            trusted(to("https", "good"), stranger.file()),
            ["BadSignature", "vault.tls.ca_file holds an authority of the same name with another key"],
        ),
        row(
            "an expired certificate",
            to("https", "expired"),
            ["expired", "2021-02-03T00:00:00Z", "renew it", "clock"],
        ),
        row(
            "a certificate of the future",
            to("https", "early"),
            ["not valid yet", "2090-01-01T00:00:00Z", "clock"],
        ),
        row("a certificate for clients", to("https", "for-clients"), ["serverAuth"]),
        row(
            "no client certificate",
            to("https", "asks"),
            ["CertificateRequired", "Vault asks for vault.tls.client_cert_file"],
        ),
        row(
            "no client certificate, TLS 1.2",
            to("https", "asks-1.2"),
            ["Vault asks for vault.tls.client_cert_file"],
        ),
        row(
            "an expired client certificate",
            shown("asks", expired.clone()),
            ["CertificateExpired", "vault.tls.client_cert_file has expired", "issue a new one"],
        ),
        row(
            "an expired client certificate, TLS 1.2",
            shown("asks-1.2", expired),
            ["CertificateExpired", "vault.tls.client_cert_file has expired", "issue a new one"],
        ),
        row(
            "a stranger's client certificate",
            shown("asks", strangers),
            ["vault.tls.client_cert_file", "tls_client_ca_file"],
        ),
        row(
            "a client certificate for servers",
            shown("asks", server_only),
            ["vault.tls.client_cert_file", "clientAuth"],
        ),
        row(
            "a client certificate and another's key",
            shown("asks", (client.0.clone(), other.1.clone())),
            ["vault.tls.client_key_file is not the key of", "render both from the same issuance"],
        ),
        row(
            "a client key with a password",
            shown("asks", (client.0.clone(), certificates.write("encrypted.key", encrypted))),
            ["vault.tls.client_key_file is encrypted", "render it without one"],
        ),
        row(
            "a client key that is none",
            shown("asks", (client.0.clone(), client.0.clone())),
            ["vault.tls.client_key_file holds no private key", "BEGIN PRIVATE KEY"],
        ),
        row(
            "a client certificate that is none",
            shown("asks", (client.1.clone(), client.1.clone())),
            ["vault.tls.client_cert_file holds no certificate", "BEGIN CERTIFICATE"],
        ),
        row(
            "a damaged client certificate",
            shown("asks", (certificates.write("damaged-client.pem", damaged), client.1.clone())),
            ["vault.tls.client_cert_file is damaged", "issue and render it again"],
        ),
        row(
            "a damaged certificate in a bundle",
            trusted(to("https", "good"), certificates.write("bundle.pem", &format!("{ca}{damaged}{ca}"))),
            ["certificate 2 in vault.tls.ca_file is damaged", "remove it"],
        ),
        row(
            "no base64 in a bundle",
            trusted(
                to("https", "good"),
                certificates.write("bundle64.pem", &format!("{ca}{ca}{not_base64}")),
            ),
            ["certificate 3 in vault.tls.ca_file is damaged", "remove it"],
        ),
        row(
            "half a bundle",
            trusted(
                to("https", "good"),
                certificates.write("half.pem", &format!("{ca}{}", ca.get(..ca.len() / 2).unwrap())),
            ),
            ["certificate 2 in vault.tls.ca_file is damaged", "remove it"],
        ),
        row(
            "a key instead of the authority",
            trusted(to("https", "good"), client.1.clone()),
            ["vault.tls.ca_file holds no certificate", "it holds a private key"],
        ),
        row(
            "no listener",
            ConfigFile { addresses: vec![closed_address()], ..trusting.clone() },
            ["refused", "does Vault run there, and is the port right?"],
        ),
        row(
            "silence",
            ConfigFile { addresses: vec![silent_address], ..trusting.clone() },
            ["timed out", "nothing answers: does a firewall drop the packets"],
        ),
        row(
            "a name that does not exist",
            ConfigFile { addresses: vec!["https://nowhere.invalid:8200".into()], ..trusting.clone() },
            ["`nowhere.invalid` cannot be resolved", "DNS"],
        ),
    ])
    .await;
}

/// The token of an AppRole login, and its entity.
async fn logged_in(bao: &Bao, dir: &Path) -> (String, String) {
    login::approle(bao, dir, &json!({})).await;
    let file = |name: &str| text(&dir.join(name)).trim().to_owned();
    let login = json!({ "role_id": file("role_id"), "secret_id": file("secret_id") });
    let auth = bao.api("POST", "auth/approle/login", login).await["auth"].take();
    let field = |name: &str| auth[name].as_str().unwrap().to_owned();
    (field("client_token"), field("entity_id"))
}

/// A proxy in front of the server produces the refusals of proxies, other editions and other clusters. All other
/// refusals come from the server itself.
#[tokio::test]
async fn refusals_by_vault_are_quoted_with_the_cause_and_the_remedy() {
    let bao = Bao::start().await;
    let good = ConfigFile::with_new_token(&bao).await;
    let dir = temp_dir("refused-");
    let parameters = |method: &str, names: &str| {
        policy(MOUNT, KEY).replace(
            &format!("path \"{MOUNT}/{method}/{KEY}\"  {{ "),
            &format!("path \"{MOUNT}/{method}/{KEY}\"  {{ allowed_parameters = {{ {names} }}\n"),
        )
    };
    let of_policy = async |name: &str, rules: &str| {
        bao.policy(name, rules).await;
        let token = bao.create_token(json!({ "policies": [name], "ttl": "1h" })).await;
        good.with_token(&token)
    };
    let no_version = of_policy("no-version", &parameters("encrypt", "\"plaintext\" = []")).await;
    let no_ciphertext = of_policy("no-ciphertext", &parameters("decrypt", "\"batch_input\" = []")).await;

    let bound = json!({
        "allowed_policies": [POLICY], "token_no_default_policy": true, "token_bound_cidrs": ["10.9.9.0/24"],
    });
    bao.api("POST", "auth/token/roles/bound", bound).await;
    let bound = bao.api("POST", "auth/token/create/bound", json!({ "policies": [POLICY] })).await;
    let bound = good.with_token(bound["auth"]["client_token"].as_str().unwrap());

    let (disabled, entity) = logged_in(&bao, dir.path()).await;
    bao.api("POST", &format!("identity/entity/id/{entity}"), json!({ "disabled": true })).await;

    let mut rows = vec![
        row(
            "no key_version",
            no_version,
            ["allow encrypt", "`key_version`", "Vault says: 1 error occurred: * permission denied"],
        ),
        row(
            "no ciphertext",
            no_ciphertext,
            ["allow decrypt", "`batch_input`", "Vault says: 1 error occurred"],
        ),
        row(
            "bound elsewhere",
            bound,
            ["outside its bound CIDRs", "render a new one", "Vault says: permission denied"],
        ),
        row("a disabled entity", good.with_token(&disabled), ["its entity is disabled", "render a new one"]),
        row(
            "no such mount",
            ConfigFile { mount: "nowhere".into(), ..of_policy("nowhere", &policy("nowhere", KEY)).await },
            [
                "not found: nowhere/keys/kms",
                "mount Transit, or correct vault.transitpath",
                "no handler for route",
            ],
        ),
    ];
    if !Bao::is_vault() {
        bao.api("POST", "sys/namespaces/team-a", json!({})).await;
        bao.api("PUT", &format!("team-a/sys/policies/acl/{POLICY}"), json!({ "policy": policy(MOUNT, KEY) }))
            .await;
        let request = json!({ "policies": [POLICY], "no_default_policy": true, "ttl": "1h" });
        let child = bao.api("POST", "team-a/auth/token/create", request).await;
        let child = good.with_token(child["auth"]["client_token"].as_str().unwrap());
        rows.push(row(
            "a child's token at the root",
            child,
            ["a token of a child namespace needs vault.namespace"],
        ));
        let nowhere = ConfigFile { namespace: Some("team-x".into()), ..good.clone() };
        rows.push(row(
            "no such namespace",
            nowhere,
            ["not found:", "in namespace `team-x`", "correct vault.namespace"],
        ));
    }
    // Vault Community Edition may not be available here.
    let mut proxies = Vec::new();
    let community = FaultProxy::in_front_of(&bao).await;
    community.inject("", Fault::policy_refused());
    let content =
        ConfigFile { namespace: Some("team-a".into()), addresses: vec![community.address()], ..good.clone() };
    rows.push(row("Vault CE with a namespace", content, ["Vault Community Edition has no namespaces"]));
    proxies.push(community);
    let empty = |status| Fault::Answer(status, Vec::new(), String::new());
    for (case, fault, words) in [
        (
            "HTML 401",
            Fault::html(401),
            ["answered 401", "is a proxy in between? It wants a login of its own"],
        ),
        (
            "HTML 407",
            Fault::html(407),
            ["answered 407", "is a proxy in between? It wants a login of its own"],
        ),
        ("HTML 403", Fault::html(403), ["answered 403", "is a proxy or a web filter in between?"]),
        ("HTML 502", Fault::html(502), ["answered 502", "is a proxy in between? It does not reach Vault"]),
        ("HTML 503", Fault::html(503), ["answered 503", "is a proxy in between? It does not reach Vault"]),
        ("HTML 504", Fault::html(504), ["answered 504", "is a proxy in between? It does not reach Vault"]),
        ("empty 200", empty(200), ["is not Vault's", "is something else listening there?"]),
        ("empty 401", empty(401), ["answered 401", "is a proxy in between?"]),
        ("empty 404", empty(404), ["answered 404", "is the path in the address wrong?"]),
        ("empty 500", empty(500), ["answered 500", "is a proxy in between, or another program"]),
        ("no words", Fault::errors(500, &[]), ["answered 500", "Vault's own log says why"]),
    ] {
        let proxy = FaultProxy::in_front_of(&bao).await;
        proxy.inject("/auth/", fault.clone());
        proxy.inject("/transit/", fault);
        rows.push(row(case, ConfigFile { addresses: vec![proxy.address()], ..good.clone() }, words));
        proxies.push(proxy);
    }
    check_all(rows).await;
}
