//! Texts, and the configs or errors that they result in.

mod auth;

use proptest::prelude::*;

use super::{
    super::{Encryption, LocalKekLimits, settings::auth::AuthSettings},
    section::TLS_SETTINGS,
    *,
};

const SENTINEL: &str = "hvs.QZ7XJWQ0ZJX9WZQJ1XWZ3QJ-XQ_ZWqzJx4wQjZ";

const WRAPPED_CONFIG: &str = "\
provider: vault
vault:
  addresses: [https://vault-0:8200, https://vault-1:8200/prefix/]
  namespace: /team-a/
  transitpath: transit/
  keynames: [kms, kms-old]
  tls: { ca_file: /etc/ca.pem, server_name: vault.internal, client_cert_file: /c.pem, client_key_file: /k.pem }
  token: hvs.QZ7XJWQ0ZJX9WZQJ1XWZ3QJ-XQ_ZWqzJx4wQjZ
";

const LOGIN_CONFIG: &str = "\
vault:
  address: https://vault-0:8200
  keynames: [kms]
  auth:
    method: approle
    mount: node-1
    role_id: hvs.QZ7XJWQ0ZJX9WZQJ1XWZ3QJ-XQ_ZWqzJx4wQjZ
    secret_id: hvs.QZ7XJWQ0ZJX9WZQJ1XWZ3QJ-XQ_ZWqzJx4wQjZ
    delivery: plain
    namespace: team-a
";

#[test]
fn transit_wraps_seeds_unless_a_local_kek_is_configured() {
    let with = |encryption: &str| format!("encryption: {encryption}\n{WRAPPED_CONFIG}");
    assert_eq!(good(WRAPPED_CONFIG).encryption, Encryption::Transit);
    assert_eq!(good(&with("{ mode: Transit, max_age: 2h }")).encryption, Encryption::Transit);
    let unset = LocalKekLimits::default();
    assert_eq!(good(&with("{ mode: local-kek }")).encryption, Encryption::LocalKek(unset));
    let all =
        "{ mode: local-kek, max_age: 90m, max_age_in_outage: 2d, renew_after: 1m, renew_after_uses: 7 }";
    let minutes = |count: u64| std::time::Duration::from_secs(count * 60);
    let limits = LocalKekLimits {
        max_age: minutes(90),
        max_age_in_outage: minutes(2 * 24 * 60),
        renew_after: minutes(1),
        renew_after_uses: 7,
    };
    assert_eq!(good(&with(all)).encryption, Encryption::LocalKek(limits));
    // In the flat shape of Trousseau v2 too.
    let flat = "address: https://v\nkeynames: [k]\ntoken: t\nencryption: { mode: local-kek }";
    assert_eq!(good(flat).encryption, Encryption::LocalKek(unset));
    for (encryption, words) in [
        ("{}", "encryption.mode: is missing: transit or local-kek"),
        ("{ mode: local }", "encryption.mode: must be transit or local-kek"),
        ("{ mode: local-kek, max_age: 30s }", "encryption.max_age: must be between 1m and 30d"),
        ("{ mode: local-kek, renew_after: 31d }", "encryption.renew_after: must be between 1m and 30d"),
        ("{ mode: local-kek, max_age: 1 }", "encryption.max_age: must be a duration such as 90m or 12h"),
        ("{ mode: }", "encryption.mode: has no value"),
        ("{ mode: local-kek, max_age: soon }", "encryption.max_age: must be a duration such as 90m or 12h"),
        ("{ mode: local-kek, max_age: 25h }", "max_age_in_outage must not be shorter than max_age"),
        ("{ mode: local-kek, renew_after_uses: 0 }", "renew_after_uses: must be a positive integer"),
        ("{ mode: local-kek, renew_after_uses: '5' }", "renew_after_uses: must be a positive integer"),
        ("{ mode: local-kek, renew_after_uses: -5 }", "renew_after_uses: must be a positive integer"),
        ("{ mode: local-kek, maxage: 2h }", "did you mean max_age"),
        ("local-kek", "encryption: must be a mapping"),
    ] {
        let error = refused(&with(encryption));
        assert!(error.contains(words) && error.starts_with("/etc/x.yaml:1: "), "{encryption}: {error}");
    }
    let below_vault = WRAPPED_CONFIG.replace("  namespace", "  encryption: { mode: local-kek }\n  namespace");
    assert!(refused(&below_vault).contains("unknown key"), "encryption is a key of the root");
}

fn read(text: &str) -> Result<Config<CredentialSettings>, ConfigError> {
    parse(text.as_bytes(), Path::new("/etc/x.yaml"), ParseOptions::default())
}

fn good(text: &str) -> Config<CredentialSettings> {
    read(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn refused(text: &str) -> String {
    let error = read(text).expect_err(text).to_string();
    assert!(error.starts_with("/etc/x.yaml:"), "{error}");
    error
}

/// A config in the flat shape, with `lines` instead of the token.
fn with(lines: &str) -> String {
    format!("address: https://v\nkeynames: k\n{lines}\n")
}

fn token(config: &Config<CredentialSettings>) -> &str {
    match &config.credentials {
        CredentialSettings::Token(token) => token.expose(),
        other => panic!("{other:?}"),
    }
}

fn login(text: &str) -> Box<AuthSettings> {
    match good(text).credentials {
        CredentialSettings::Login(auth) => auth,
        other => panic!("{other:?}\n{text}"),
    }
}

#[test]
fn the_shape_of_transit_kms() {
    let config = good(WRAPPED_CONFIG);
    assert_eq!(
        config.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["https://vault-0:8200", "https://vault-1:8200/prefix"]
    );
    assert_eq!(config.namespace.as_str(), "team-a");
    assert_eq!(config.keys.primary().mount().as_str(), "transit");
    assert_eq!(config.keys.iter().map(|key| key.name().as_str()).collect::<Vec<_>>(), ["kms", "kms-old"]);
    assert_eq!(config.tls.ca_file.as_deref(), Some(Path::new("/etc/ca.pem")));
    assert_eq!(config.tls.server_name.as_deref(), Some("vault.internal"));
    assert_eq!(config.tls.client_cert_file.as_deref(), Some(Path::new("/c.pem")));
    assert_eq!(config.tls.client_key_file.as_deref(), Some(Path::new("/k.pem")));
    assert_eq!(token(&config), SENTINEL);
    assert!(config.warnings.is_empty());
    assert!(!format!("{config:?}").contains(SENTINEL));
}

#[test]
fn trousseau_v1_as_an_agent_renders_it() {
    let config = good(
        "\r\n--- \r\nprovider: vault \r\nvault: \r\n  keynames: \r\n  - vault-kms-demo \r\n  \
             address: https://vault:8200 \r\n  token: \" s.abcdef \" \r\n  vaultcacert: /ca.crt \r\n  \
             tlsservername: vault.loc \r\n  transitpath: transit \r\n  authpath: auth \r\n \r\n",
    );
    assert_eq!(config.keys.primary().name().as_str(), "vault-kms-demo");
    assert_eq!(token(&config), "s.abcdef");
    assert_eq!(config.tls.ca_file.as_deref(), Some(Path::new("/ca.crt")));
    assert_eq!(config.tls.server_name.as_deref(), Some("vault.loc"));
    assert!(config.namespace.is_root());
}

#[test]
fn trousseau_v2_in_the_flat_shape() {
    let config = good(
        "\u{feff}--- \nkeyNames:\n- kms\naddress: https://v\ntoken: root\nvaultCACert: /ca.crt\ntlsServerName: v\n",
    );
    assert_eq!(token(&config), "root");
    assert_eq!(config.keys.primary().mount().as_str(), "transit");
    assert_eq!(config.tls.ca_file.as_deref(), Some(Path::new("/ca.crt")));
    assert_eq!(good(&with("provider: OpenBao\nTOKEN: t")).keys.primary().name().as_str(), "k");
}

/// Trousseau's parser, viper, reads each of these.
#[test]
fn everything_that_viper_reads_is_accepted() {
    let config = good(&with("token: t\n--- \n# the end\n"));
    assert_eq!(token(&config), "t");
    assert_eq!(good(&with("token: t # comment\n...\n---\n---")), config);
    // Every optional setting may be blank, in each of YAML's forms.
    let optional = [
        "addresses",
        "auth",
        "authpath",
        "clientcert",
        "clientkey",
        "encryption",
        "namespace",
        "provider",
        "roleid",
        "secretid",
        "tls",
        "tlsservername",
        "transitpath",
        "vaultcacert",
        "VaultCACert",
    ];
    for empty in ["", "''", "' '", "null", "~", "# comment"] {
        for key in optional {
            assert_eq!(good(&with(&format!("token: t\n{key}: {empty}"))), config, "{key}: {empty}");
        }
        for key in TLS_SETTINGS {
            assert_eq!(good(&with(&format!("token: t\ntls:\n  {key}: {empty}"))), config, "{key}: {empty}");
        }
        for key in ["max_age", "max_age_in_outage", "renew_after", "renew_after_uses"] {
            let lines = format!("token: t\nencryption:\n  mode: transit\n  {key}: {empty}");
            assert_eq!(good(&with(&lines)), config, "{key}: {empty}");
        }
        let addresses = format!("addresses: [https://v]\naddress: {empty}\nkeynames: k\ntoken: t\n");
        assert_eq!(good(&addresses), config);
        for key in ["mount", "namespace"] {
            let object = format!("address: https://v\ntoken: t\nkeynames:\n- name: k\n  {key}: {empty}\n");
            assert_eq!(good(&object), config, "{key}: {empty}");
        }
        let login = login(&with(&format!("token: {empty}\nroleid: r")));
        assert_eq!(login.method.name(), "approle", "{empty}");
    }
    // Numbers and booleans are read as text.
    let config = good(
        "address: https://v\ntoken: 0123\nnamespace: 2024\nkeynames: [1, 0x10, 1_000, 1e3, true, 007]\n",
    );
    let names: Vec<_> = config.keys.iter().map(|key| key.name().as_str()).collect();
    assert_eq!(names, ["1", "0x10", "1_000", "1e3", "true", "007"]);
    assert_eq!((token(&config), config.namespace.as_str()), ("0123", "2024"));
    assert_eq!(good("address: https://v\ntoken: t\nkeynames: 5\n").keys.primary().name().as_str(), "5");
    let config = good("address: https://v\ntoken: t\nkeynames: a, b\n");
    assert_eq!(config.keys.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn merge_keys_merge_as_in_yaml() {
    let config = good(
        "defaults: &defaults\n  namespace: from-defaults\n  transitpath: from-defaults\n  \
             tls: &tls { ca_file: /ca.pem, server_name: v }\n\
             more: &more { <<: *defaults, namespace: from-more, address: https://v }\n\
             x-nothing: [1, 2]\n\
             vault:\n  <<: [*more, *defaults]\n  transitpath: own\n  keynames: [k]\n  token: t\n  \
             tls: { <<: *tls, server_name: w }\n",
    );
    assert_eq!(config.addresses.len(), 1);
    assert_eq!(config.namespace.as_str(), "from-more");
    assert_eq!(config.keys.primary().mount().as_str(), "own");
    assert_eq!(config.tls.ca_file.as_deref(), Some(Path::new("/ca.pem")));
    assert_eq!(config.tls.server_name.as_deref(), Some("w"));
    // In the flat shape too. A blank setting is not replaced by a merged one.
    let flat = "x-v: &v { address: https://v, namespace: a, token: t }\n<<: *v\nkeynames: k\nnamespace:\n";
    assert!(good(flat).namespace.is_root());
}

#[test]
fn the_token_has_precedence_and_the_others_cause_warnings() {
    let cert = "auth: { method: cert, cert_file: /c, key_file: /k }";
    let config = good(&with(&format!("token: t\nroleid: r\nsecretid: ''\n{cert}")));
    assert_eq!(token(&config), "t");
    assert_eq!(
        config.warnings,
        [
            "auth: is ignored because a token is configured too",
            "roleid: is ignored because a token is configured too"
        ]
    );
    let both = with(&format!("{cert}\nclientcert: /c\nclientkey: /k"));
    assert_eq!(login(&both).method.name(), "cert");
    let warnings = good(&both).warnings;
    assert_eq!(
        warnings,
        [
            "clientcert: is ignored because another login is configured too",
            "clientkey: is ignored because another login is configured too"
        ]
    );
    assert!(good(&with("roleid: r\nsecretid: s")).warnings.is_empty());
    assert!(good(&with(cert)).warnings.is_empty());
    assert!(refused(&with("roleid: ''\nsecretid: ' '")).contains("either token or auth is required"));
}

#[test]
fn a_key_may_have_its_own_location() {
    let with = |keynames: &str| {
        format!("address: https://v\ntoken: t\nnamespace: team-a\ntransitpath: new\nkeynames: {keynames}\n")
    };
    let config = good(&with(
        "[kms, { name: kms, mount: /old/ }, { NAME: kms, namespace: root }, { name: b, namespace: team-a/x, mount: t }, { name: c }]",
    ));
    let locations: Vec<_> = config
        .keys
        .iter()
        .map(|key| (key.to_string(), key.namespace().as_str().to_owned(), key.mount().as_str().to_owned()))
        .collect();
    let locations: Vec<_> =
        locations.iter().map(|(key, namespace, mount)| [&**key, &**namespace, &**mount]).collect();
    assert_eq!(
        locations,
        [
            ["kms", "team-a", "new"],
            ["team-a/old/kms", "team-a", "old"],
            ["new/kms", "", "new"],
            ["team-a/x/t/b", "team-a/x", "t"],
            ["c", "team-a", "new"],
        ]
    );
    assert_eq!(good(&with("{ name: kms, mount: old }")).keys.primary().to_string(), "team-a/old/kms");
    // The entry that an error suggests is parsed as the same key.
    for key in config.keys.iter() {
        let again = good(&with(&format!("[{}]", key.config_entry())));
        assert_eq!(again.keys.primary(), key, "{}", key.config_entry());
    }
    let odd = good(&with("{ name: kms, mount: 'a:,[*/b' }"));
    assert_eq!(good(&with(&odd.keys.primary().config_entry())).keys, odd.keys);

    for (keynames, words) in [
        ("[kms, { mount: old }]", "keynames[1].name: is missing"),
        ("[{ name: kms, path: old }]", "keynames[0]: unknown key (not shown"),
        ("[{ name: kms, mont: old }]", "keynames[0].mont: unknown key; did you mean mount?"),
        ("[{ name: kms, transitpath: a }]", "keynames[0].transitpath: unknown key here; it is called mount"),
        ("[{ name: a/b }]", "keynames[0].name: must be a key name"),
        ("[{ name: kms, mount: a//b }]", "keynames[0].mount: must not have empty"),
        ("[{ name: kms, namespace: a b }]", "keynames[0].namespace: must be a plain path"),
        ("[kms, { name: kms }]", "keynames: must not name a key twice"),
        ("[kms, { name: kms, mount: new }]", "keynames: must not name a key twice"),
        ("[kms, { name: kms, mount: team-a/new, namespace: root }]", "keynames: must not name a key twice"),
    ] {
        let error = refused(&with(keynames));
        assert!(error.starts_with("/etc/x.yaml:5: ") && error.contains(words), "{keynames}: {error}");
    }
}

#[test]
fn a_duplicate_address_is_ignored() {
    let config = good("addresses: [https://v, https://v/]\nkeynames: k\ntoken: t\n");
    assert_eq!((config.addresses.len(), config.warnings.len()), (1, 1));
}

/// Each text, and the expected error after the path.
#[test]
fn errors_name_line_key_and_rule() {
    let mut wrong = Vec::new();
    for (text, expected) in [
        ("vault:\n  address: http://v\n  keynames: k\n  token: t\n", ":2: vault.address: is http://"),
        (&with("token: ''"), ":3: token: must not be empty"),
        (&with("token:"), ":3: token: has no value"),
        (&with("token: [t]"), ":3: token: must be a string, not a list"),
        (&with("token: a b"), ":3: token: must be visible ASCII"),
        (&with("token: <no value>"), ":3: token: is <no value>"),
        (&with(""), ": token: is missing: either token or auth is required"),
        ("vault:\n  keynames: k\n  token: t\n", ":1: vault.address: is missing"),
        ("vault:\n  address: https://v\n  token: t\n", ":1: vault.keynames: is missing"),
        (&with("token: t\ntls:\n  ca_file: ca.pem"), ":5: tls.ca_file: must be an absolute path"),
        (&with("token: t\nvaultcacert: ca.pem"), ":4: vaultcacert: must be an absolute path"),
        (
            &with("token: t\nvaultcacert: /a\ntls: { ca_file: /a }"),
            ":4: vaultcacert: means the same as tls.ca_file",
        ),
        (
            &with("token: t\ntls:\n  client_cert_file: /a"),
            ":5: tls.client_cert_file: requires client_key_file",
        ),
        (
            &with("token: t\ntls:\n  client_key_file: /a"),
            ":5: tls.client_key_file: requires client_cert_file",
        ),
        (&with("token: t\ntls: x"), ":4: tls: must be a mapping"),
        (&with("token: t\ntls: { server_name: 'a b' }"), ":4: tls.server_name: must be a DNS name"),
        (&with("token: t\naddresses: [https://v]"), ":1: address: cannot be used together with addresses"),
        (&with("token: t\ntransitpath: a//b"), ":4: transitpath: must not have empty"),
        (&with("token: t\nnamespace: a b"), ":4: namespace: must be a plain path"),
        (&with("tokn: t"), ":3: tokn: unknown key; did you mean token?"),
        (&with("token: t\nkey_names: [k]"), ":4: key_names: unknown key; did you mean keynames?"),
        (&with("token: t\nca_file: /a"), ":4: ca_file: unknown key here; it belongs below tls:"),
        (
            &with("token: t\nlisten: x"),
            ":4: unknown key (not shown because it may be a secret); known keys: address, ",
        ),
        (
            "provider: vault\ntoken: t\nvault:\n  a: b\n",
            ":2: token: unknown key here; it belongs below vault:",
        ),
        ("provider: awskms\n", ":1: provider: must be vault"),
        ("provider: 1\n", ":1: provider: must be vault"),
        ("provider: vault\nvault:\n", ":2: vault: has no value; the file may be half written"),
        (&with("token: t\nTOKEN: t"), ":4: token: is set twice"),
        (&with("token: t\ntls: {ca_file: /a, CA_FILE: /b}"), ":4: tls.ca_file: is set twice"),
        ("address: https://v\ntoken: t\nkeynames:\n- a\n- b\n- a/b\n", ":6: keynames[2]: must be a key name"),
        ("address: https://v\ntoken: t\nkeynames:\n- a\n- 1.\n", ":5: keynames[1]: must be a key name"),
        ("address: https://v\ntoken: t\nkeynames:\n- a\n-\n", ":5: keynames[1]: has no value"),
        ("address: https://v\ntoken: t\nkeynames: ''\n", ":3: keynames: must not be empty"),
        ("address: https://v\ntoken: t\nkeynames: a,\n", ":3: keynames: must not be empty"),
        ("address:\ntoken: t\nkeynames: k\n", ":1: address: has no value"),
        ("addresses: ''\ntoken: t\nkeynames: k\n", ":1: addresses: must not be empty"),
        (
            "addresses: 'https://a, https://b'\ntoken: t\nkeynames: k\n",
            ":1: addresses: must be one address: write several as a list, addresses: [https://…",
        ),
        (
            "address: https://v/v1/\ntoken: t\nkeynames: k\n",
            ":1: address: must end before /v1 and /ui: write the address alone, such as https://vault:8200",
        ),
        (&with("token: t\ntls: { server_name: 10.0.0.1 }"), ":4: tls.server_name: must be a DNS name"),
        (&with("token: t\ntlsservername: '::1'"), ":4: tlsservername: must be a DNS name"),
        (&with("token: t\n<<: x"), ":4: <<: must be a mapping, or a list of mappings"),
        (&with("token: t\n<<: [{namespace: a}, x]"), ":4: <<[1]: must be a mapping"),
        (&with("token: t\n<<: {tokn: a}"), ":4: tokn: unknown key; did you mean token?"),
        (
            "x-v: &v\n  namespace: a b\nvault:\n  <<: *v\n  address: https://v\n  keynames: k\n  token: t\n",
            ":2: vault.namespace: must be a plain path",
        ),
        ("a: &a { token: t }\naddress: https://v\nkeynames: k\ntoken: t\n", ":1: unknown key"),
        ("a: b\n---\n# c\n---\nc: d\n", ": must contain one YAML document"),
        ("address: https://v\ntoken: t\nkeynames: [a, b, a]\n", ":3: keynames: must not name a key twice"),
        ("address: https://v\ntoken: t\nkeynames: []\n", ":3: keynames: must name at least one key"),
        ("address: https://v\ntoken: t\nkeynames: {a: b}\n", ":3: keynames: unknown key (not shown"),
        ("addresses: []\ntoken: t\nkeynames: k\n", ":1: addresses: must contain at least one address"),
        (&with("auth: {}"), ":3: auth.method: is missing"),
        (&with("auth: { method: 1 }"), ":3: auth.method: must be a known login method"),
        (&with("auth: { method: magic }"), ":3: auth.method: must be a known login method: agent, approle, "),
        (&with("auth:\n  method: kubernetes\n  role: [a]"), ":5: auth.role: must be a string, not a list"),
        (&with("auth:\n  method: jwt\n  x: a\n  x: b"), ":6: auth.(a key): is set twice"),
        (&with("token: t\ntls:\n  cafile: /a"), ":5: tls.cafile: unknown key; did you mean ca_file?"),
        (&with("auth: jwt"), ":3: auth: must be a mapping"),
        ("", ": is empty; the file may be half written"),
        (" \n\n", ": is empty"),
        ("# only a comment\n", ": is empty"),
        ("--- \n", ": is empty"),
        ("provid", ": must contain settings"),
        ("- a\n", ": must contain settings"),
        ("a: b\n---\nc: d\n", ": must contain one YAML document"),
        ("a: b\n c: d\n", ":2:3: is not valid YAML: a colon is not allowed here"),
        ("a: 'b\n", ":2:1: is not valid YAML: a quote is not closed"),
        ("a: {b: c\n", ":2:1: is not valid YAML: a { or [ is not closed"),
        ("a:\n\tb: c\n", ":2:1: is not valid YAML: a value begins with a tab"),
        ("a: @b\n", ":1:4: is not valid YAML: a value begins with a tab, @, ` or %"),
        ("a: b\nc: d\0e\n", ":2: contains a control character"),
        ("a: *b\n", ":1:4: is not valid YAML"),
        ("a: !secret b\n", ":1: contains a YAML tag"),
        ("1: b\n", ":1: contains a key that is not a string"),
        ("[a]: b\n", ":1: contains a key that is not a string"),
    ] {
        let error = refused(text);
        if !error.starts_with(&format!("/etc/x.yaml{expected}")) {
            wrong.push(format!("{text}\nexpected {expected}\ngot {error}\n"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn http_needs_the_flag() {
    let text = "address: http://v\nkeynames: k\ntoken: t\n";
    assert!(refused(text).contains("--allow-http"));
    assert!(parse(text.as_bytes(), Path::new("/x"), ParseOptions { allow_http: true }).is_ok());
}

#[test]
fn size_and_encoding_are_checked() {
    let path = Path::new("/x");
    let mut text = WRAPPED_CONFIG.to_owned();
    text += &"#".repeat(MAX_FILE_BYTES - text.len());
    assert!(parse(text.as_bytes(), path, ParseOptions::default()).is_ok());
    text.push('#');
    let error = parse(text.as_bytes(), path, ParseOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "/x: is larger than 64 KiB");
    let error = parse(b"a: b\nc: \xff\n", path, ParseOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "/x:2: is not UTF-8 text");
}

#[test]
fn a_secret_where_a_key_should_be_is_not_shown() {
    for text in [
        with(&format!("{SENTINEL}: x")),
        with(&format!("token: t\ntls:\n  {SENTINEL}: x")),
        with(&format!("{SENTINEL}: x\n{SENTINEL}: y")),
        with(&format!("token: !!int {SENTINEL}")),
        with(&format!("token: t\nauth:\n  {SENTINEL}: [x]")),
        format!("vault: {SENTINEL}\n"),
        format!("{SENTINEL}\n"),
        format!("vault:\n  {SENTINEL}: x\n"),
        format!("keynames: {SENTINEL}\naddress: {SENTINEL}\n"),
    ] {
        let error = read(&text).expect_err(&text);
        assert!(
            !format!("{error} {error:?}").contains(SENTINEL) && !format!("{error}").contains("qz7"),
            "{error}"
        );
    }
}

/// One change that damages a text.
#[derive(Clone, Debug)]
enum Damage {
    Cut(usize, usize),
    Insert(usize, &'static str),
    Swap(usize, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let pieces = prop::sample::select(vec![
        "\n",
        ": ",
        " ",
        "\"",
        "'",
        "- ",
        "#",
        "[",
        "{",
        "}",
        "]",
        ",",
        "!",
        "!!int ",
        "&a ",
        "*a",
        "|\n",
        "\t",
        "\0",
        "\r",
        "---\n",
        "? ",
        "%",
        "@",
        "\u{feff}",
        "<no value>",
        "!!binary ",
        "token: ",
        "<<: ",
    ]);
    prop_oneof![
        (0..400_usize, 0..60_usize).prop_map(|(at, length)| Damage::Cut(at, length)),
        (0..400_usize, pieces).prop_map(|(at, piece)| Damage::Insert(at, piece)),
        (0..400_usize, 0..400_usize).prop_map(|(a, b)| Damage::Swap(a, b)),
    ]
}

fn damaged(text: &str, damages: &[Damage]) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for damage in damages {
        let end = bytes.len();
        match *damage {
            Damage::Cut(at, length) => drop(bytes.drain(at.min(end)..(at + length).min(end))),
            Damage::Insert(at, piece) => {
                drop(bytes.splice(at.min(end)..at.min(end), piece.bytes()).collect::<Vec<_>>());
            }
            Damage::Swap(a, b) if a < end && b < end => bytes.swap(a, b),
            Damage::Swap(..) => {}
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn no_bytes_cause_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes, Path::new("/x"), ParseOptions::default());
    }

    #[test]
    fn no_text_causes_a_panic(text in "[ -~\n\t\r\u{e9}\u{feff}]{0,200}") {
        let _ = parse(text.as_bytes(), Path::new("/x"), ParseOptions::default());
    }

    /// An error for a damaged file never shows four consecutive characters of the secret. The messages contain
    /// no such sequence themselves.
    #[test]
    fn errors_for_damaged_files_show_no_secret(
        text in prop::sample::select(vec![WRAPPED_CONFIG, LOGIN_CONFIG]),
        damages in prop::collection::vec(damage(), 1..6),
    ) {
        if let Err(error) = parse(&damaged(text, &damages), Path::new("/x"), ParseOptions::default()) {
            let text = format!("{error} {error:?}").to_lowercase();
            let secret = SENTINEL.to_lowercase();
            for piece in secret.as_bytes()["hvs.".len()..].windows(4) {
                let piece = str::from_utf8(piece).unwrap();
                prop_assert!(!text.contains(piece), "{piece} in {text}");
            }
        }
    }
}
