//! The `auth:` block, and Trousseau's logins.

use std::path::PathBuf;

use transit_client::key::{MountPath, Namespace};

use super::{SENTINEL, good, login, read, refused, with};
use crate::config::{
    CredentialSettings, ParseOptions, parse,
    settings::auth::{
        AppRoleSettings, AuthMethod, AuthSettings, AwsProof, AwsSettings, CertSettings, DEFAULT_STATE_DIR,
        DeliveredSecretId, Delivery, InlineMethod, JwtSettings, JwtSource, KubernetesSettings, LoginMount,
        MaterialFile, SERVICE_ACCOUNT_TOKEN, Secret, SecretSource, SpiffeId, SpiffeSettings, SvidSource,
        TrustDomainName, TrustDomains, UserpassSettings, WorkloadApiSettings, X509Source,
    },
};

fn auth(settings: &str) -> String {
    with(&format!("namespace: outer\nauth: {{ {settings} }}"))
}

fn file_of(setting: &str, path: &str) -> MaterialFile {
    MaterialFile { path: path.into(), setting: setting.into() }
}

fn file(key: &str, path: &str) -> MaterialFile {
    file_of(&format!("auth.{key}"), path)
}

fn in_file(key: &str, path: &str) -> SecretSource {
    SecretSource::File(file(key, path))
}

fn inline(text: &str) -> SecretSource {
    SecretSource::Inline(Secret::new(text).unwrap())
}

fn workload_api(spiffe_id: Option<&str>) -> WorkloadApiSettings {
    let spiffe_id = spiffe_id.map(|id| SpiffeId::new(id).unwrap());
    WorkloadApiSettings { socket: "/run/api.sock".into(), spiffe_id }
}

/// A login with the defaults of the method.
fn settings(method: AuthMethod, mount: &str) -> AuthSettings {
    AuthSettings {
        method,
        mount: LoginMount::Fixed(MountPath::new(mount).unwrap()),
        namespace: Namespace::new("outer").unwrap(),
        state_dir: DEFAULT_STATE_DIR.into(),
    }
}

fn secret_id(delivery: Delivery) -> Option<DeliveredSecretId> {
    Some(DeliveredSecretId { delivery, source: in_file("secret_id_file", "/s") })
}

#[test]
fn each_method_has_settings_of_its_own() {
    let files =
        || X509Source::Files { cert_file: file("cert_file", "/c.pem"), key_file: file("key_file", "/k.pem") };
    let role = || "kms".to_owned();
    let app_role = |secret_id| AppRoleSettings { role: None, role_id: inline("r"), secret_id };
    let plain = Some(DeliveredSecretId { delivery: Delivery::Plain, source: inline("s") });
    let jwt_file = |path: &str| JwtSource::File(file("jwt_file", path));
    let api = "workload_api: { address: 'unix:///run/api.sock'";
    let jwt_api = |id| JwtSource::WorkloadApi { api: workload_api(id), audience: "vault".into() };
    for (text, method) in [
        ("method: AppRole, role_id: r, secret_id: s".into(), AuthMethod::AppRole(app_role(plain))),
        ("method: approle, role_id: r".into(), AuthMethod::AppRole(app_role(None))),
        (
            "method: approle, role: kms, role_id_file: /r, secret_id_file: /s, delivery: wrapped".into(),
            AuthMethod::AppRole(AppRoleSettings {
                role: Some(role()),
                role_id: in_file("role_id_file", "/r"),
                secret_id: secret_id(Delivery::Wrapped),
            }),
        ),
        (
            "method: approle, role: kms, role_id: r, secret_id_file: /s, delivery: Cubbyhole".into(),
            AuthMethod::AppRole(AppRoleSettings {
                role: Some(role()),
                ..app_role(secret_id(Delivery::Cubbyhole))
            }),
        ),
        (
            "method: approle, role_id: r, secret_id_file: /s, delivery: sealed, private_key_file: /k".into(),
            AuthMethod::AppRole(app_role(secret_id(Delivery::Sealed {
                private_key_file: file("private_key_file", "/k"),
            }))),
        ),
        (
            "method: aws, role: kms".into(),
            AuthMethod::Aws(AwsSettings {
                proof: AwsProof::Iam { region: None, server_id: None },
                role: role(),
            }),
        ),
        (
            "method: aws, type: iam, role: kms, region: eu-central-1, iam_server_id_header_value: v".into(),
            AuthMethod::Aws(AwsSettings {
                proof: AwsProof::Iam { region: Some("eu-central-1".into()), server_id: Some("v".into()) },
                role: role(),
            }),
        ),
        (
            "method: aws, type: EC2, role: kms".into(),
            AuthMethod::Aws(AwsSettings { proof: AwsProof::Ec2, role: role() }),
        ),
        (
            "method: cert, cert_file: /c.pem, key_file: /k.pem".into(),
            AuthMethod::Cert(CertSettings { certificate: files(), role: None }),
        ),
        (
            format!("method: cert, role: kms, {api}, spiffe_id: spiffe://td/a }}"),
            AuthMethod::Cert(CertSettings {
                certificate: X509Source::WorkloadApi(workload_api(Some("spiffe://td/a"))),
                role: Some(role()),
            }),
        ),
        (
            "method: jwt, role: kms, jwt_file: /j".into(),
            AuthMethod::Jwt(JwtSettings { jwt: jwt_file("/j"), role: role() }),
        ),
        (
            format!("method: jwt, role: kms, {api}, audience: vault }}"),
            AuthMethod::Jwt(JwtSettings { jwt: jwt_api(None), role: role() }),
        ),
        (
            "method: kubernetes, role: kms".into(),
            AuthMethod::Kubernetes(KubernetesSettings {
                jwt_file: file("jwt_file", SERVICE_ACCOUNT_TOKEN),
                role: role(),
            }),
        ),
        (
            "method: spiffe, svid: jwt, role: kms, jwt_file: /j".into(),
            AuthMethod::Spiffe(SpiffeSettings { role: role(), svid: SvidSource::Jwt(jwt_file("/j")) }),
        ),
        (
            "method: spiffe, svid: X509, role: kms, cert_file: /c.pem, key_file: /k.pem".into(),
            AuthMethod::Spiffe(SpiffeSettings { role: role(), svid: SvidSource::X509(files()) }),
        ),
        (
            "method: token_file, token_file: /t, delivery: wrapped".into(),
            AuthMethod::TokenFile(file("token_file", "/t")),
        ),
        (
            "method: userpass, username: node-1, password: p w".into(),
            AuthMethod::Userpass(UserpassSettings { password: inline("p w"), username: "node-1".into() }),
        ),
    ] {
        let name = method.name();
        assert_eq!(*login(&auth(&text)), settings(method, name), "{text}");
    }
    assert_eq!(good(&auth("method: agent")).credentials, CredentialSettings::Agent);
    for delivery in ["", ", delivery: plain"] {
        let text = auth(&format!("method: token_file, token_file: /t{delivery}"));
        assert_eq!(good(&text).credentials, CredentialSettings::TokenFile(file("token_file", "/t")));
    }
}

#[test]
fn mount_namespace_and_state_directory_have_defaults() {
    let text =
        auth("method: approle, role_id: r, mount: auth/node-1/, namespace: logins, state_dir: /var/lib/x");
    let found = login(&text);
    assert_eq!(found.mount, LoginMount::Fixed(MountPath::new("node-1").unwrap()));
    assert_eq!(found.namespace.as_str(), "logins");
    assert_eq!(found.state_dir, PathBuf::from("/var/lib/x"));
    let root = login(&auth("method: approle, role_id: r, namespace: root"));
    assert!(root.namespace.is_root());
    // In the shape of transit-kms, the setting has the name that the user reads there.
    let wrapped = "vault:\n  address: https://v\n  keynames: k\n  auth:\n    method: userpass\n    username: u\n    password_file: /p\n";
    let expected = SecretSource::File(file_of("vault.auth.password_file", "/p"));
    let AuthMethod::Userpass(UserpassSettings { password, .. }) = login(wrapped).method else { panic!() };
    assert_eq!(password, expected);
}

#[test]
fn the_trust_domain_chooses_the_mount() {
    let domains = "trust_domains: { prod.acme.net: auth/jwt-prod, dev.acme.net: jwt-dev }";
    let pair = |domain, mount| (TrustDomainName::new(domain).unwrap(), MountPath::new(mount).unwrap());
    let expected =
        TrustDomains::new([pair("prod.acme.net", "jwt-prod"), pair("dev.acme.net", "jwt-dev")].into());
    let expected = LoginMount::ByTrustDomain(expected.unwrap());
    for rest in [
        "method: jwt, role: kms, jwt_file: /j",
        "method: cert, cert_file: /c, key_file: /k",
        "method: spiffe, svid: jwt, role: kms, jwt_file: /j",
        "method: cert, workload_api: { address: 'unix:///a', spiffe_id: 'spiffe://prod.acme.net/a' }",
    ] {
        assert_eq!(login(&auth(&format!("{rest}, {domains}"))).mount, expected, "{rest}");
    }
    let inline = login(&auth(&format!(
        "method: inline, login: {{ method: jwt, role: kms, jwt_file: /j, {domains} }}"
    )));
    assert_eq!(inline.mount, expected);
}

#[test]
fn an_inline_login_has_the_mount_and_the_namespace_of_its_method() {
    let found = login(&auth(
        "method: inline, login: { method: approle, role_id: r, secret_id_file: /s, delivery: plain, namespace: n }",
    ));
    let method = InlineMethod::AppRole {
        role_id: inline("r"),
        secret_id: Some(in_file("login.secret_id_file", "/s")),
    };
    let namespace = Namespace::new("n").unwrap();
    assert_eq!(*found, AuthSettings { namespace, ..settings(AuthMethod::Inline(method), "approle") });
    assert_eq!(found.method.name(), "inline");
    for (text, name) in [
        ("method: jwt, role: kms, jwt_file: /j", "jwt"),
        ("method: kubernetes, role: kms", "kubernetes"),
        ("method: userpass, username: u, password: p", "userpass"),
    ] {
        let found = login(&auth(&format!("method: inline, login: {{ {text} }}")));
        let AuthMethod::Inline(method) = &found.method else { panic!("{found:?}") };
        assert_eq!(method.name(), name);
        assert_eq!(found.mount, LoginMount::Fixed(MountPath::new(name).unwrap()));
    }
}

/// The settings of a block, and the expected error after the line.
#[test]
fn errors_of_an_auth_block_name_the_rule() {
    let mut wrong = Vec::new();
    for (text, expected) in [
        // The method.
        ("mount: a", "auth.method: is missing: the login method, such as approle"),
        ("method: ''", "auth.method: must not be empty"),
        ("method: ldap", "auth.method: ldap is not supported: let an agent log in, and use method: agent or"),
        ("method: GCP", "auth.method: gcp is not supported"),
        ("method: token", "auth.method: token is no login: set vault.token, or use method: token_file"),
        (
            "method: magic",
            "auth.method: must be a known login method: agent, approle, aws, cert, inline, jwt, ",
        ),
        // Keys of other methods, of other sections, and misspelled ones.
        (
            "method: approle, role_id: r, wrapped: true",
            "auth.wrapped: unknown key here; it is written delivery: wrapped",
        ),
        (
            "method: approle, role_id: r, username: u",
            "auth.username: unknown key here; it is a setting of method userpass",
        ),
        (
            "method: userpass, role: r",
            "auth.role: unknown key here; it is a setting of the methods approle, aws, cert, jwt, kubernetes and spiffe",
        ),
        (
            "method: kubernetes, role: r, trust_domains: { a: b }",
            "auth.trust_domains: unknown key here; it is a setting of the methods cert, jwt and spiffe",
        ),
        ("method: agent, mount: a", "auth.mount: unknown key here; it is a setting of the methods "),
        ("method: token_file, token: t", "auth.token: unknown key here; it belongs beside auth:"),
        ("method: inline, mount: a", "auth.mount: unknown key here"),
        ("method: jwt, audience: a", "auth.audience: unknown key here; it belongs below workload_api:"),
        ("method: approle, roleid: r", "auth.roleid: unknown key; did you mean role_id?"),
        (
            "method: approle, secret_idfile: r",
            "auth.secret_idfile: unknown key; did you mean secret_id_file?",
        ),
        ("method: userpass, pasword: p", "auth.pasword: unknown key; did you mean password?"),
        (
            "method: agent, zzz: a",
            "auth: unknown key (not shown because it may be a secret); known keys: method",
        ),
        // One of two sources.
        (
            "method: approle, role_id: r, role_id_file: /r",
            "auth.role_id: cannot be used together with role_id_file",
        ),
        (
            "method: approle, role_id: r, secret_id: s, secret_id_file: /s",
            "auth.secret_id: cannot be used together with secret_id_file",
        ),
        (
            "method: userpass, username: u, password: p, password_file: /p",
            "auth.password: cannot be used together with password_file",
        ),
        (
            "method: jwt, role: r, jwt_file: /j, workload_api: {}",
            "auth.workload_api: cannot be used together with jwt_file",
        ),
        (
            "method: cert, cert_file: /c, workload_api: {}",
            "auth.workload_api: cannot be used together with cert_file and key_file",
        ),
        (
            "method: jwt, role: r, jwt_file: /j, mount: a, trust_domains: { a: b }",
            "auth.trust_domains: cannot be used together with mount",
        ),
        // Required settings.
        (
            "method: approle",
            "auth.role_id: is missing: the role_id, or the path of a file with it in role_id_file",
        ),
        ("method: approle, role_id_file: ''", "auth.role_id_file: must not be empty"),
        ("method: aws", "auth.role: is missing: the role of the login method"),
        (
            "method: cert",
            "auth.cert_file: is missing: the PEM file of the certificate, together with key_file; or workload_api",
        ),
        ("method: cert, cert_file: /c", "auth.cert_file: requires key_file"),
        ("method: cert, key_file: /k", "auth.key_file: requires cert_file"),
        ("method: inline", "auth.login: is missing: the login whose credentials travel with each request"),
        (
            "method: jwt, role: r",
            "auth.jwt_file: is missing: the path of a file with the JWT; or workload_api",
        ),
        ("method: jwt, jwt_file: /j", "auth.role: is missing"),
        ("method: kubernetes", "auth.role: is missing"),
        ("method: spiffe, role: r", "auth.svid: is missing: jwt or x509"),
        (
            "method: spiffe, svid: jwt, role: r",
            "auth.jwt_file: is missing: the path of a file with the JWT-SVID; or workload_api",
        ),
        ("method: spiffe, svid: x509, role: r", "auth.cert_file: is missing: the PEM file of the X.509-SVID"),
        ("method: token_file", "auth.token_file: is missing: the path of the file with the token"),
        ("method: userpass, password: p", "auth.username: is missing: the name of the user"),
        (
            "method: userpass, username: u",
            "auth.password: is missing: the password, or the path of a file with it in password_file",
        ),
        // Deliveries.
        (
            "method: approle, role_id: r, secret_id: s, delivery: boxed",
            "auth.delivery: must be plain, wrapped, cubbyhole or sealed",
        ),
        (
            "method: approle, role: kms, role_id: r, delivery: wrapped",
            "auth.delivery: requires secret_id or secret_id_file",
        ),
        (
            "method: approle, role_id: r, secret_id: s, delivery: wrapped",
            "auth.role: is missing: the name of the AppRole role",
        ),
        ("method: approle, role_id: r, secret_id: s, delivery: cubbyhole", "auth.role: is missing"),
        (
            "method: approle, role_id: r, secret_id: s, private_key_file: /k",
            "auth.private_key_file: requires delivery: sealed",
        ),
        (
            "method: approle, role_id: r, secret_id: s, delivery: sealed",
            "auth.private_key_file: is missing: the RSA key of this node, made by transit-kms keygen",
        ),
        ("method: token_file, token_file: /t, delivery: sealed", "auth.delivery: must be plain or wrapped"),
        ("method: token_file, token_file: /t, state_dir: /d", "auth.state_dir: requires delivery: wrapped"),
        ("method: token_file, token_file: /t, namespace: a", "auth.namespace: requires delivery: wrapped"),
        // AWS.
        ("method: aws, type: sts, role: r", "auth.type: must be iam or ec2"),
        ("method: aws, type: ec2, role: r, region: eu-central-1", "auth.region: requires type: iam"),
        (
            "method: aws, type: ec2, role: r, iam_server_id_header_value: v",
            "auth.iam_server_id_header_value: requires type: iam",
        ),
        ("method: aws, role: r, region: Europe", "auth.region: must be a region, such as eu-central-1"),
        // SPIFFE.
        ("method: spiffe, svid: both, role: r", "auth.svid: must be jwt or x509"),
        (
            "method: spiffe, svid: jwt, role: r, jwt_file: /j, key_file: /k",
            "auth.key_file: does not fit svid",
        ),
        (
            "method: spiffe, svid: x509, role: r, cert_file: /c, key_file: /k, jwt_file: /j",
            "auth.jwt_file: does not fit svid",
        ),
        (
            "method: jwt, role: r, workload_api: { audience: a }",
            "auth.workload_api.address: is missing: the socket of the Workload API",
        ),
        (
            "method: jwt, role: r, workload_api: { address: 'unix:///a' }",
            "auth.workload_api.audience: is missing: the audience of the JWT-SVID",
        ),
        (
            "method: cert, workload_api: { address: 'unix:///a', audience: a }",
            "auth.workload_api.audience: is a setting of JWT-SVIDs",
        ),
        (
            "method: cert, workload_api: { address: 'https://a' }",
            "auth.workload_api.address: must be the address of a unix socket",
        ),
        (
            "method: cert, workload_api: { address: 'unix:///a', spiffe_id: a }",
            "auth.workload_api.spiffe_id: must be a SPIFFE ID with a path",
        ),
        (
            "method: cert, workload_api: { adress: 'unix:///a' }",
            "auth.workload_api.adress: unknown key; did you mean address?",
        ),
        ("method: cert, workload_api: /a", "auth.workload_api: must be a mapping"),
        (
            "method: cert, cert_file: /c, key_file: /k, trust_domains: {}",
            "auth.trust_domains: must map at least one trust domain",
        ),
        (
            "method: cert, cert_file: /c, key_file: /k, trust_domains: { a: m, b: m }",
            "auth.trust_domains: must not map two trust domains to one mount",
        ),
        (
            "method: cert, cert_file: /c, key_file: /k, trust_domains: { 'spiffe://a': m }",
            "auth.trust_domains.(a key): its key must be the name of a trust domain",
        ),
        (
            "method: cert, cert_file: /c, key_file: /k, trust_domains: { a: }",
            "auth.trust_domains.(a key): has no value",
        ),
        (
            "method: cert, workload_api: { address: 'unix:///a', spiffe_id: spiffe://b/c }, trust_domains: { a: m }",
            "auth.trust_domains: must contain the trust domain of workload_api.spiffe_id",
        ),
        // Inline.
        (
            "method: inline, login: { method: cert }",
            "auth.login.method: must be a method whose credentials can travel with each request: approle, jwt, kubernetes, userpass",
        ),
        ("method: inline, login: { method: inline }", "auth.login.method: must be a method whose"),
        (
            "method: inline, login: { method: jwt, role: r, workload_api: { address: 'unix:///a', audience: a } }",
            "auth.login.workload_api: cannot be used with inline",
        ),
        (
            "method: inline, login: { method: approle, role_id: r, secret_id: s, delivery: wrapped }",
            "auth.login.delivery: must be plain",
        ),
        (
            "method: inline, login: { method: approle, role_id: r, state_dir: /d }",
            "auth.login.state_dir: unknown key here",
        ),
        ("method: inline, login: approle", "auth.login: must be a mapping"),
        // Values.
        ("method: approle, role_id_file: r", "auth.role_id_file: must be an absolute path"),
        ("method: approle, role_id: [r]", "auth.role_id: must be a string"),
        ("method: approle, role_id: <no value>", "auth.role_id: is <no value>"),
        ("method: approle, role_id: r, state_dir: d", "auth.state_dir: must be an absolute path"),
        ("method: kubernetes, role: a b", "auth.role: must be at most 512 visible ASCII characters"),
        ("method: kubernetes, role: r, mount: a//b", "auth.mount: must not have empty"),
        ("method: kubernetes, role: r, namespace: a b", "auth.namespace: must be a plain path"),
        ("method: userpass, username: a/b, password: p", "auth.username: must be one segment of a path"),
        ("method: approle, role_id: r, ROLE_ID: r", "auth.role_id: is set twice"),
    ] {
        let error = refused(&auth(text));
        if !error.starts_with(&format!("/etc/x.yaml:4: {expected}")) {
            wrong.push(format!("{text}\nexpected {expected}\ngot {error}\n"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn trousseau_logins_become_methods() {
    let inline_app_role = |secret_id: Option<&str>| {
        AuthMethod::AppRole(AppRoleSettings {
            role: None,
            role_id: inline("r"),
            secret_id: secret_id
                .map(|text| DeliveredSecretId { delivery: Delivery::Plain, source: inline(text) }),
        })
    };
    let cert = || {
        AuthMethod::Cert(CertSettings {
            certificate: X509Source::Files {
                cert_file: file_of("clientcert", "/c"),
                key_file: file_of("clientkey", "/k"),
            },
            role: None,
        })
    };
    for (lines, method, mount, namespace) in [
        ("roleid: r\nsecretid: s", inline_app_role(Some("s")), "approle", "outer"),
        ("roleID: r", inline_app_role(None), "approle", "outer"),
        ("roleid: r\nauthpath: auth/team", inline_app_role(None), "team/approle", "outer"),
        ("roleid: r\nauthpath: /ns/auth/", inline_app_role(None), "approle", "outer/ns"),
        ("clientCert: /c\nclientKey: /k", cert(), "cert", "outer"),
        ("clientcert: /c\nclientkey: /k\nauthpath: auth", cert(), "cert", "outer"),
        // Trousseau prefers the certificate.
        ("clientcert: /c\nclientkey: /k\nroleid: r", cert(), "cert", "outer"),
    ] {
        let found = login(&with(&format!("namespace: outer\n{lines}")));
        let expected =
            AuthSettings { namespace: Namespace::new(namespace).unwrap(), ..settings(method, mount) };
        assert_eq!(*found, expected, "{lines}");
    }
    for (lines, expected) in [
        ("secretid: s", "roleid: is missing: the role_id of the AppRole"),
        ("clientcert: /c", "clientkey: is missing: the path of the key of clientcert"),
        ("clientkey: /k", "clientcert: is missing: the path of the certificate for clientkey"),
        ("clientcert: c\nclientkey: /k", "clientcert: must be an absolute path"),
        ("roleid: r\nauthpath: transit", "authpath: must be auth, or a path that contains it"),
        ("roleid: [r]", "roleid: must be a string"),
    ] {
        let error = refused(&with(lines));
        assert!(error.contains(&format!(" {expected}")), "{lines}: {error}");
    }
    // With a token, Trousseau does not use the path.
    assert!(good(&with("token: t\nauthpath: transit")).warnings.is_empty());
}

#[test]
fn only_an_agent_may_be_reached_without_tls() {
    let with_address = |address: &str, auth: &str| {
        let text = format!("address: {address}\nkeynames: k\n{auth}\n");
        parse(text.as_bytes(), "/etc/x.yaml".as_ref(), ParseOptions::default())
            .map(|config| config.addresses[0].to_string())
            .map_err(|error| error.to_string())
    };
    let agent = "auth: { method: agent }";
    for address in ["unix:///run/agent.sock", "http://127.0.0.1:8100", "https://vault:8200"] {
        assert_eq!(with_address(address, agent).unwrap(), address);
    }
    for (address, auth, words) in [
        ("http://vault:8200", agent, "is http://, which would send the token in clear"),
        ("unix://run/agent.sock", agent, "must be a unix socket such as unix:///run/agent.sock"),
        ("unix:///run/agent.sock", "token: t", "is a unix socket, which only auth.method: agent can use"),
        ("unix:///a", "token: t\nauth: { method: agent }", "is a unix socket, which only"),
        ("http://127.0.0.1:8100", "token: t", "--allow-http"),
        ("http://127.0.0.1:8100", "auth: { method: kubernetes, role: r }", "--allow-http"),
    ] {
        let error = with_address(address, auth).unwrap_err();
        assert!(error.starts_with("/etc/x.yaml:1: address: ") && error.contains(words), "{error}");
    }
}

#[test]
fn no_value_of_an_auth_block_is_shown() {
    let blank: String = SENTINEL.chars().chain([' ']).chain(SENTINEL.chars()).collect();
    let mut texts = vec![
        format!("method: {SENTINEL}"),
        format!("method: approle, {SENTINEL}: x"),
        format!("method: approle, role_id: r, secret_id: [{SENTINEL}]"),
        format!("method: approle, role_id: r, secret_id: {{ {SENTINEL}: x }}"),
        format!("method: approle, role_id: r, secret_id: {SENTINEL}, secret_id_file: {SENTINEL}"),
        format!("method: jwt, role: r, jwt_file: /j, trust_domains: {{ {SENTINEL}/: x }}"),
        format!("method: jwt, role: r, jwt_file: /j, trust_domains: {{ a: {SENTINEL} {SENTINEL} }}"),
        format!("method: jwt, role: r, jwt_file: /j, trust_domains: {{ a: [{SENTINEL}] }}"),
        format!("method: jwt, role: r, workload_api: {{ {SENTINEL}: x }}"),
        format!("method: cert, workload_api: {{ address: {SENTINEL} }}"),
        format!("method: inline, login: {{ method: {SENTINEL} }}"),
        format!("method: inline, login: {{ method: userpass, {SENTINEL}: x }}"),
        format!("method: inline, login: {SENTINEL}"),
    ];
    for key in ["delivery", "mount", "namespace", "private_key_file", "role_id_file", "state_dir"] {
        texts.push(format!("method: approle, role_id: r, secret_id: s, {key}: '{blank}'"));
    }
    for key in ["region", "role", "type"] {
        texts.push(format!("method: aws, {key}: '{blank}'"));
    }
    for text in texts {
        let error = read(&auth(&text)).expect_err(&text);
        let shown = format!("{error} {error:?}").to_lowercase();
        assert!(!shown.contains("qz7"), "{text}: {error}");
    }
    for text in [
        format!("method: approle, role_id: {SENTINEL}, secret_id: {SENTINEL}"),
        format!("method: userpass, username: u, password: {SENTINEL}"),
        format!("method: inline, login: {{ method: userpass, username: u, password: {SENTINEL} }}"),
    ] {
        assert!(!format!("{:?}", good(&auth(&text))).contains(SENTINEL), "{text}");
    }
}
