//! Configs with a secret in every valid place and in many invalid ones.

use std::{fs, os::unix::ffi::OsStrExt};

use rand::RngExt;
use tempfile::TempDir;

use super::secrets::{Secrets, sentinel};

/// Bad configs, each with its own secrets.
pub(super) fn bad_configs(secrets: &mut Secrets, dir: &TempDir) -> Vec<Vec<u8>> {
    let mut secret = || {
        let secret = sentinel();
        secrets.add("a value of the config", &secret);
        // Keys are compared in lower case, so they could be printed in lower case.
        secrets.add("a value of the config", secret.to_lowercase());
        secret
    };
    let around = |settings: &str| format!("provider: vault\nvault:\n{settings}");
    let rest = "  address: https://127.0.0.1:1\n  keynames: [kms]\n";
    let mut all: Vec<String> = Vec::new();

    // Invalid YAML, or YAML with the wrong structure.
    for broken in [
        "  token: \"%\n",
        "  token: '%\n",
        "\ttoken: %\n",
        "  token: %\n bad: %\n",
        "  token: %: %\n",
        "  token: [%\n",
        "  token: {%: %\n",
        "  token: *%\n",
        "  token: !% %\n",
        "  token: !!binary %\n",
        "  token: &% %\n  secretid: [*%]\n",
        "  token: @%\n",
        "  token: `%\n",
        "  token: %%\n  %\n",
        "  - %\n",
        "  ? {%: %}\n  : %\n",
        "  ? [%]\n  : %\n",
        "  token: %\n---\ntoken: %\n",
        "  token: %\n...\n%\n",
        "  token: |\n   %\n  %\n",
        "  token: \"\\%\"\n",
        "  token: %\u{1}\n",
        "  token: {{ with secret \"%\" }}{{ .Data.% }}{{ end }}\n",
        "  <<: %\n",
        "  <<: {token: [%]}\n",
    ] {
        all.push(around(&(rest.to_owned() + broken)));
    }
    all.extend(
        ["%\n", "- %\n", "{%: %}\n", "%YAML %\n---\n%\n", "vault: %\n", "vault: [%]\n"].map(str::to_owned),
    );

    // Unknown, misplaced and duplicate keys, and values that break a rule.
    for settings in [
        "  %: %\n",
        "  token: %\n  %: x\n",
        "  tokenn: %\n",
        "  tok: %\n",
        "  provider: %\n",
        "  token: %\n  Token: %\n",
        "  token: [%]\n",
        "  token: {%: %}\n",
        "  token: {token: %}\n",
        "  token: % %\n",
        "  token: \"%\\n%\"\n",
        "  token: %\u{e9}\n",
        "  token: %\n  namespace: % %\n",
        "  token: %\n  namespace: [%]\n",
        "  token: %\n  transitpath: %?%\n",
        "  token: %\n  transitpath: {%: x}\n",
        "  token: %\n  tls: %\n",
        "  token: %\n  tls: [%]\n",
        "  token: %\n  tls: {%: %}\n",
        "  token: %\n  tls: {ca_fil: %}\n",
        "  token: %\n  tls: {ca_file: %}\n",
        "  token: %\n  tls: {ca_file: [%]}\n",
        "  token: %\n  tls: {server_name: % %}\n",
        "  token: %\n  tls: {client_cert_file: /%}\n",
        "  token: %\n  tls: {client_key_file: %, client_cert_file: %}\n",
        "  token: %\n  tls: {ca_file: /x}\n  vaultcacert: %\n",
        "  token: %\n  tlsservername: %/%\n",
        "  token: %\n  authpath: [%]\n",
        "  auth: %\n",
        "  auth: [%]\n",
        "  auth: {method: %}\n",
        "  auth: {method: [%]}\n",
        "  auth: {method: approle, role_id: {%: %}}\n",
        "  auth: {%: %}\n",
        "  auth: {method: approle, role_id: r, secret_id: [%]}\n",
        "  auth: {method: approle, role_id: r, secret_id: %, secret_id_file: %}\n",
        "  auth: {method: approle, role_id: r, secret_id: s, delivery: %}\n",
        "  auth: {method: token_file, token: %}\n",
        "  auth: {method: jwt, role: r, jwt_file: %}\n",
        "  auth: {method: jwt, role: r, workload_api: {address: %, audience: %}}\n",
        "  auth: {method: cert, cert_file: /c, key_file: /k, trust_domains: {%/: %}}\n",
        "  auth: {method: inline, login: {method: userpass, username: u, password: {%: %}}}\n",
        "  auth: {method: inline, login: %}\n",
        // Logins.
        "  auth: {method: approle, role_id: %, secret_id: %}\n",
        "  auth: {method: userpass, username: u, password: %}\n",
        "  auth: {method: approle, %: %}\n",
        "  roleid: %\n  secretid: %\n",
        "  clientcert: %\n  clientkey: %\n",
        "  roleid: [%]\n",
        "  secretid: {%: %}\n",
    ] {
        all.push(around(&(rest.to_owned() + settings)));
    }
    for settings in [
        "  address: %\n",
        "  address: [%\n",
        "  address: {%: %}\n",
        "  address: http://%\n",
        "  address: ftp://%\n",
        "  address: https://%:%@127.0.0.1:1\n",
        "  address: https://127.0.0.1:1/?token=%\n",
        "  address: https://127.0.0.1:1/#%\n",
        "  address: https://127.0.0.1:%\n",
        "  address: \"https://127.0.0.1:1/% %\"\n",
        "  addresses: [%]\n",
        "  addresses: [[%]]\n",
        "  addresses: {%: %}\n",
        "  addresses: []\n  address: %\n",
    ] {
        all.push(around(&format!("  keynames: kms\n  token: %\n{settings}")));
    }
    for settings in
        ["% %", "[%!]", "[-%]", "[[%]]", "{%: %}", "[]\n  keyname: %", "\n  - kms\n  - kms\n  - \"%/%\""]
    {
        all.push(around(&format!("  address: https://127.0.0.1:1\n  token: %\n  keynames: {settings}\n")));
    }
    all.push(format!("provider: %\n{}", around(rest)));
    all.push("provider: %\nvault: {token: %}\n".to_owned());
    all.push("provider: vault\ntoken: %\nvault:\n  token: %\n".to_owned());

    let mut all: Vec<Vec<u8>> = all
        .into_iter()
        .map(|template| {
            let mut pieces = template.split('%');
            let mut text = pieces.next().unwrap().to_owned();
            for piece in pieces {
                text += &secret();
                text += piece;
            }
            text.into_bytes()
        })
        .collect();

    // Configs that need the paths of files.
    let token = secret();
    all.push(around(&format!("{rest}  token: {}\n", token.repeat(200))).into_bytes());
    all.push(around(&format!("{rest}  token: {token}\n#{}\n", token.repeat(4000))).into_bytes());
    all.push([around(rest).as_bytes(), b"  token: ", token.as_bytes(), b"\xff\xfe\n"].concat());
    all.push([b"\xff\xfe", token.as_bytes()].concat());
    let digits: String = (0..30).map(|_| char::from(rand::rng().random_range(b'1'..=b'9'))).collect();
    secrets.add("a number", &digits);
    all.push(around(&format!("{rest}  token: {digits}\n")).into_bytes());
    all.push(around(&format!("{rest}  token: {digits}.5\n")).into_bytes());
    all.push(around(&format!("{rest}  {digits}: x\n")).into_bytes());

    // A key instead of its path, and a file with other content.
    let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
    secrets.add_pem("a key", &pem);
    let block = pem.replace('\n', "\n      ");
    for (key, other) in [("client_key_file", "client_cert_file: /x\n"), ("ca_file", "server_name: x\n")] {
        let tls = format!("  tls:\n    {other}    {key}: |\n      {block}\n");
        all.push(around(&format!("{rest}  token: x\n{tls}")).into_bytes());
    }
    all.push(pem.clone().into_bytes());
    let file = dir.path().join("a.pem");
    fs::write(&file, &pem).unwrap();
    let path = std::str::from_utf8(file.as_os_str().as_bytes()).unwrap();
    for tls in [format!("ca_file: {path}"), format!("client_cert_file: {path}\n    client_key_file: {path}")]
    {
        all.push(around(&format!("{rest}  token: x\n  tls:\n    {tls}\n")).into_bytes());
    }
    all
}
