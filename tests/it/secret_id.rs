//! `transit-kmsctl secret-id`, with the policies of `manifests/vault/trusted-introduction/`, on a real server.
//!
//! The tests are requestor, courier and node. As a node, they do what the login method `approle` does.

use std::{fs, os::unix::fs::MetadataExt};

use http::{HeaderValue, StatusCode, header::LOCATION};
use sealed_payload::NodeKey;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{
    Bao, Caller, ConfigFile, Daemon,
    cli::{Ran, run, run_kmsctl_with},
    closed_address, command, config_file,
    http::{HttpServer, answer},
    repository, temp_dir,
};

/// The policy of the nodes, as in docs/install.md.
const POLICY: &str = "transit-kms-east";
/// The role of the node.
const ROLE: &str = "transit-kms-east-cp1";
const CUBBYHOLE: &str = "transit-kms-cubbyhole";
const NODE: &str = "cp1";
/// `EX_USAGE`.
const USAGE: Option<i32> = Some(64);
/// `EX_OSERR`.
const SYSTEM: Option<i32> = Some(71);

/// A server with the role and the policies, and a token of the requestor.
struct Introduction {
    bao: Bao,
    dir: TempDir,
    requestor: String,
    role_id: String,
}

impl Introduction {
    async fn start() -> Self {
        let bao = Bao::start().await;
        for (file, name) in [
            ("courier", "transit-kms-courier"),
            ("cubbyhole", CUBBYHOLE),
            ("node", POLICY),
            ("requestor", "transit-kms-requestor"),
        ] {
            let path = format!("manifests/vault/trusted-introduction/{file}.hcl");
            bao.policy(name, &fs::read_to_string(repository::path(&path)).unwrap()).await;
        }
        bao.api("POST", "transit/keys/kms-east", json!({})).await;
        let role = json!({"token_no_default_policy": true, "token_policies": [POLICY], "token_ttl": "1h"});
        bao.api("POST", &format!("auth/approle/role/{ROLE}"), role).await;
        // The command is in cubbyhole.hcl.
        let token_role = json!({
            "allowed_policies": [CUBBYHOLE],
            "orphan": true,
            "renewable": false,
            "token_no_default_policy": true,
            "token_num_uses": 2,
            "token_type": "service",
        });
        bao.api("POST", &format!("auth/token/roles/{CUBBYHOLE}"), token_role).await;
        let role_id = bao.api("GET", &format!("auth/approle/role/{ROLE}/role-id"), Value::Null).await;
        let role_id = role_id["data"]["role_id"].as_str().unwrap().to_owned();
        let requestor = bao.create_token(json!({"policies": ["transit-kms-requestor"]})).await;
        Self { bao, dir: temp_dir("secret-id-"), requestor, role_id }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Runs `transit-kmsctl secret-id` as the requestor.
    async fn run(&self, arguments: &[&str]) -> Ran {
        self.run_as(&self.requestor, arguments).await
    }

    async fn run_as(&self, token: &str, arguments: &[&str]) -> Ran {
        let (address, ca) = (self.bao.address(), self.bao.ca_file().display().to_string());
        let environment = [("VAULT_ADDR", &*address), ("VAULT_CACERT", &*ca), ("VAULT_TOKEN", token)];
        let ran = run_kmsctl_with(&[&["secret-id"], arguments].concat(), &environment, "").await;
        assert!(!format!("{ran:?}").contains(token), "the operator's token is printed");
        ran
    }

    /// Issues a secret_id for [`NODE`], and returns what the node gets.
    async fn issue(&self, more: &[&str]) -> String {
        let ran = self.run(&[&["issue", "--role", ROLE, "--node", NODE], more].concat()).await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(ran.stderr.contains(&format!("for the node {NODE}")), "{ran:?}");
        ran.stdout
    }

    async fn list(&self, more: &[&str]) -> Vec<Value> {
        let ran = self.run(&[&["list", "--role", ROLE, "-o", "json"], more].concat()).await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.json()["secret_ids"].as_array().unwrap().clone()
    }

    async fn try_login(&self, secret_id: &str) -> (u16, Value) {
        let credentials = json!({"role_id": self.role_id, "secret_id": secret_id});
        self.bao.api_as("", "POST", "auth/approle/login", credentials).await
    }

    /// Logs in as the node, and returns its token.
    async fn login(&self, secret_id: &str) -> String {
        let (status, answer) = self.try_login(secret_id.trim_end()).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["auth"]["metadata"]["node"], NODE, "{answer}");
        answer["auth"]["client_token"].as_str().unwrap().to_owned()
    }

    /// Unwraps a secret_id as the node: checks where the wrap was made, and uses it up.
    async fn unwrap(&self, wrap_info: &Value) -> String {
        let token = wrap_info["token"].as_str().unwrap();
        let lookup = self.bao.api_as("", "POST", "sys/wrapping/lookup", json!({"token": token})).await.1;
        let path = format!("auth/approle/role/{ROLE}/secret-id");
        assert_eq!(
            (&lookup["data"]["creation_path"], &wrap_info["creation_path"]),
            (&json!(path), &json!(path))
        );
        let (status, answer) = self.bao.api_as(token, "POST", "sys/wrapping/unwrap", json!({})).await;
        assert_eq!(status, 200, "{answer}");
        answer["data"]["secret_id"].as_str().unwrap().to_owned()
    }

    /// Reads a cubbyhole as the node, which uses its token up.
    async fn read_cubbyhole(&self, delivered: &str) -> Value {
        let reference: Value = serde_json::from_str(delivered).unwrap();
        let [token, path] = ["token", "path"].map(|name| reference[name].as_str().unwrap());
        let (status, answer) = self.bao.api_as(token, "GET", path, Value::Null).await;
        assert_eq!(status, 200, "{answer}");
        let (status, _) = self.bao.api_as(token, "GET", path, Value::Null).await;
        assert_eq!(status, 403, "the token has no further use");
        answer["data"].clone()
    }
}

#[tokio::test]
async fn each_form_of_delivery_leads_to_a_login() {
    let it = Introduction::start().await;
    let parsed = |text: &str| serde_json::from_str::<Value>(text).unwrap();

    it.login(&it.issue(&[]).await).await;

    let wrapped = parsed(&it.issue(&["--wrap", "24h"]).await);
    assert_eq!(wrapped["wrap_info"]["ttl"], 24 * 3600);
    it.login(&it.unwrap(&wrapped["wrap_info"]).await).await;

    let with_role = ["--cubbyhole", "--token-role", CUBBYHOLE];
    let found = it.read_cubbyhole(&it.issue(&with_role).await).await;
    it.login(found["secret_id"].as_str().unwrap()).await;
    let found = it.read_cubbyhole(&it.issue(&[&with_role[..], &["--wrap", "1h"]].concat()).await).await;
    it.login(&it.unwrap(&found["wrap_info"]).await).await;

    let key = NodeKey::generate().unwrap();
    let (public, out) = (it.path("node.pub"), it.path("secret-id.pem"));
    fs::write(&public, key.public_key().to_pem()).unwrap();
    assert_eq!(it.issue(&["--seal", &public, "--out", &out]).await, "");
    assert_eq!(fs::metadata(&out).unwrap().mode() & 0o777, 0o600);
    let secret_id = key.open(&fs::read(&out).unwrap()).unwrap();
    it.login(str::from_utf8(&secret_id).unwrap()).await;
    let sealed = it.issue(&["--seal", &public, "--wrap", "1h"]).await;
    let opened = key.open(sealed.as_bytes()).unwrap();
    it.login(&it.unwrap(&parsed(str::from_utf8(&opened).unwrap())["wrap_info"]).await).await;

    // Each of them is in the list, and no secret.
    let listed = it.list(&["--node", NODE]).await;
    assert_eq!(listed.len(), 6, "{listed:?}");
    assert!(!format!("{listed:?}").contains(str::from_utf8(&secret_id).unwrap()));
}

/// The daemon reads what the commands have made, in each form.
#[tokio::test]
async fn transit_kms_starts_with_each_form_of_delivery() {
    let it = Introduction::start().await;
    let keygen = run(&["keygen", "--out", &it.path("node-key.pem")]).await;
    fs::write(it.path("node.pub"), keygen.stdout).unwrap();
    let (public, cubbyhole) = (it.path("node.pub"), ["--cubbyhole", "--token-role", CUBBYHOLE]);
    for (delivery, issue) in [
        ("plain", vec![]),
        ("wrapped", vec!["--wrap", "1h"]),
        ("cubbyhole", cubbyhole.to_vec()),
        ("cubbyhole", [&cubbyhole[..], &["--wrap", "1h"]].concat()),
        ("sealed", vec!["--seal", &public]),
        ("sealed", vec!["--seal", &public, "--wrap", "1h"]),
    ] {
        let dir = temp_dir("node-");
        let delivered = dir.path().join("secret_id");
        it.issue(&[&issue[..], &["--out", delivered.to_str().unwrap()]].concat()).await;
        let mut auth = json!({
            "delivery": delivery,
            "method": "approle",
            "role": ROLE,
            "role_id": it.role_id,
            "secret_id_file": delivered,
            "state_dir": dir.path(),
        });
        if delivery == "sealed" {
            auth["private_key_file"] = it.path("node-key.pem").into();
        }
        let config =
            ConfigFile { auth: Some(auth), keys: vec!["kms-east".into()], ..ConfigFile::of(&it.bao, "") };
        let file = dir.path().join("config.yaml");
        config_file::by_rename(&file, &config.yaml());
        let daemon = Daemon::start(&file).await;
        daemon.wait_ready().await;
        Caller::of(&daemon).await.round_trip().await;
    }
}

/// Without a token role, the token of the cubbyhole is a child of the requestor's token.
#[tokio::test]
async fn a_cubbyhole_works_without_a_token_role() {
    let it = Introduction::start().await;
    let create = r#"path "auth/token/create" { capabilities = ["update"] }"#;
    it.bao.policy("create", create).await;
    let issue = ["issue", "--role", ROLE, "--node", NODE, "--cubbyhole"];
    for (own, more) in [("default", vec![]), (CUBBYHOLE, vec!["--cubbyhole-policy", CUBBYHOLE])] {
        let policies =
            json!({"policies": ["create", own, "transit-kms-requestor"], "no_default_policy": false});
        let requestor = it.bao.create_token(policies).await;
        let ran = it.run_as(&requestor, &[&issue[..], &more].concat()).await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let reference: Value = serde_json::from_str(&ran.stdout).unwrap();
        let lookup = json!({"token": reference["token"]});
        let token = it.bao.api("POST", "auth/token/lookup", lookup).await["data"].clone();
        assert_eq!((&token["num_uses"], &token["renewable"]), (&json!(1), &json!(false)), "{token}");
        assert_eq!((&token["policies"], &token["creation_ttl"]), (&json!([own]), &json!(600)), "{token}");
        let found = it.read_cubbyhole(&ran.stdout).await;
        it.login(found["secret_id"].as_str().unwrap()).await;
    }
}

#[tokio::test]
async fn secret_ids_are_listed_and_destroyed() {
    let it = Introduction::start().await;
    assert!(it.list(&[]).await.is_empty());
    let limited = ["--num-uses", "3", "--ttl", "2h", "--cidr", "127.0.0.0/8,::1/128"];
    let first = it.issue(&limited).await;
    let second = it.issue(&[]).await;
    let other = it.run(&["issue", "--role", ROLE, "--node", "cp2", "--wrap", "1h"]).await;
    assert_eq!(other.code, Some(0), "{other:?}");

    it.login(&first).await;
    let listed = it.list(&[]).await;
    let nodes: Vec<_> = listed.iter().map(|it| it["node"].as_str().unwrap()).collect();
    assert_eq!(nodes, [NODE, NODE, "cp2"]);
    assert_eq!((&listed[0]["uses_left"], &listed[1]["uses_left"]), (&json!(2), &Value::Null));
    assert!(listed[0]["expiration_time"].is_string() && listed[1]["expiration_time"].is_null());
    assert_eq!(listed[0]["cidr_list"], json!(["127.0.0.0/8", "::1/128"]));
    assert!(listed.iter().all(|it| it["age_seconds"].as_u64().is_some()), "{listed:?}");
    let table = it.run(&["list", "--role", ROLE]).await.stdout;
    let rows: Vec<_> = table.lines().collect();
    assert!(rows[0].starts_with("ACCESSOR") && rows.len() == 4, "{table}");
    assert!(rows[1].contains(NODE) && rows[1].ends_with(" 2") && rows[2].contains("never"), "{table}");
    assert!(!table.contains(first.trim()) && !table.contains(second.trim()), "{table}");

    // The accessor that `issue` prints also names a wrapped one.
    let accessor = other.stderr.lines().find_map(|line| line.strip_prefix("accessor: ")).unwrap();
    assert_eq!(listed[2]["accessor"], accessor);
    let destroyed = it.run(&["destroy", "--role", ROLE, "--accessor", accessor]).await;
    assert_eq!((destroyed.code, destroyed.stdout), (Some(0), format!("destroyed {accessor}\n")));
    assert_eq!(it.list(&["--node", "cp2"]).await.len(), 0);
    assert_eq!(it.list(&[]).await.len(), 2);

    it.login(&first).await;
    let destroyed = it.run(&["destroy", "--role", ROLE, "--node", NODE]).await;
    assert_eq!((destroyed.code, destroyed.stdout.lines().count()), (Some(0), 2), "{destroyed:?}");
    for gone in [&first, &second] {
        assert_eq!(it.try_login(gone.trim_end()).await.0, 400);
    }
    for (which, words) in [
        (["--node", NODE], "has no secret_id of the node"),
        (["--accessor", accessor], "failed to find accessor"),
    ] {
        let again = it.run(&[&["destroy", "--role", ROLE], &which[..]].concat()).await;
        assert_eq!((again.code, again.stdout.as_str()), (Some(1), ""), "{again:?}");
        assert!(again.stderr.contains(words), "{again:?}");
    }
}

/// Neither the role_id nor a secret_id is enough alone.
#[tokio::test]
async fn the_requestor_has_no_other_rights() {
    let it = Introduction::start().await;
    let role = format!("auth/approle/role/{ROLE}");
    for (method, path) in [
        ("GET", format!("{role}/role-id")),
        ("GET", role.clone()),
        ("POST", role),
        ("LIST", "auth/approle/role/transit-kms-west/secret-id".to_owned()),
        ("POST", "auth/token/create".to_owned()),
        ("POST", "cubbyhole/transit-kms".to_owned()),
        ("POST", "transit/decrypt/kms-east".to_owned()),
    ] {
        let (status, answer) = it.bao.api_as(&it.requestor, method, &path, json!({})).await;
        assert_eq!(status, 403, "{method} {path}: {answer}");
    }
    let wider = json!({"policies": ["default"]});
    let (status, answer) =
        it.bao.api_as(&it.requestor, "POST", &format!("auth/token/create/{CUBBYHOLE}"), wider).await;
    assert_eq!(status, 400, "{answer}");
}

#[tokio::test]
async fn the_node_needs_only_its_login() {
    let it = Introduction::start().await;
    let token = it.login(&it.issue(&[]).await).await;
    let encrypt = json!({"plaintext": "c2VlZA=="});
    let (status, encrypted) = it.bao.api_as(&token, "POST", "transit/encrypt/kms-east", encrypt).await;
    assert_eq!(status, 200, "{encrypted}");
    let role = format!("auth/approle/role/{ROLE}");
    for (method, path, expected) in [
        ("POST", format!("{role}/secret-id"), 403),
        ("LIST", format!("{role}/secret-id"), 403),
        ("GET", format!("{role}/role-id"), 403),
        ("POST", "transit/encrypt/kms".to_owned(), 403),
        ("GET", "cubbyhole/transit-kms".to_owned(), 403),
        ("GET", "auth/token/lookup-self".to_owned(), 200),
        ("POST", "auth/token/renew-self".to_owned(), 200),
        ("POST", "auth/token/revoke-self".to_owned(), 204),
    ] {
        let (status, answer) = it.bao.api_as(&token, method, &path, json!({})).await;
        assert_eq!(status, expected, "{method} {path}: {answer}");
    }
}

#[tokio::test]
async fn the_courier_has_no_cubbyhole_and_makes_no_wraps() {
    let it = Introduction::start().await;
    // The deny counts, although `default` allows both.
    let policies = json!({"policies": ["default", "transit-kms-courier"], "no_default_policy": false});
    let courier = it.bao.create_token(policies).await;
    let role = format!("auth/approle/role/{ROLE}");
    for (method, path) in [
        ("GET", "cubbyhole/transit-kms"),
        ("LIST", "cubbyhole/"),
        ("POST", "cubbyhole/transit-kms"),
        ("DELETE", "cubbyhole/transit-kms"),
        ("LIST", &format!("{role}/secret-id")),
        ("POST", &format!("{role}/secret-id")),
        ("GET", &format!("{role}/role-id")),
    ] {
        let (status, answer) = it.bao.api_as(&courier, method, path, json!({"a": "b"})).await;
        assert_eq!(status, 403, "{method} {path}: {answer}");
    }
    let wrapped: Value = serde_json::from_str(&it.issue(&["--wrap", "1h"]).await).unwrap();
    let token = json!({"token": wrapped["wrap_info"]["token"]});
    for path in ["sys/wrapping/rewrap", "sys/wrapping/unwrap", "sys/wrapping/wrap"] {
        let (status, answer) = it.bao.api_as(&courier, "POST", path, token.clone()).await;
        assert_eq!(status, 403, "{path}: {answer}");
    }
    // The courier has not used up the wrap.
    it.login(&it.unwrap(&wrapped["wrap_info"]).await).await;
}

/// docs/auth/trusted-introduction.md says what an interceptor can do.
#[tokio::test]
async fn a_theft_by_the_courier_is_noticed_or_useless() {
    let it = Introduction::start().await;
    // No policy prevents the theft of a wrap, because the wrapping token itself has the right. The node notices it.
    let wrapped: Value = serde_json::from_str(&it.issue(&["--wrap", "1h"]).await).unwrap();
    let token = wrapped["wrap_info"]["token"].as_str().unwrap();
    it.unwrap(&wrapped["wrap_info"]).await;
    let (status, answer) = it.bao.api_as("", "POST", "sys/wrapping/lookup", json!({"token": token})).await;
    assert_eq!(status, 400, "{answer}");
    let (status, answer) = it.bao.api_as(token, "POST", "sys/wrapping/unwrap", json!({})).await;
    assert_eq!(status, 400, "{answer}");

    let delivered = it.issue(&["--cubbyhole", "--token-role", CUBBYHOLE]).await;
    it.read_cubbyhole(&delivered).await;

    // A payload that is sealed for another node is of no use.
    let (key, thief) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
    fs::write(it.path("node.pub"), key.public_key().to_pem()).unwrap();
    let sealed = it.issue(&["--seal", &it.path("node.pub")]).await;
    assert!(thief.open(sealed.as_bytes()).is_err());
    let secret_id = String::from_utf8(key.open(sealed.as_bytes()).unwrap().to_vec()).unwrap();
    assert!(!sealed.contains(&secret_id));
    it.login(&secret_id).await;
}

#[tokio::test]
async fn nothing_is_issued_if_it_cannot_be_delivered() {
    let it = Introduction::start().await;
    let issue = ["issue", "--role", ROLE, "--node", NODE];
    let too_few = json!({"allowed_policies": [CUBBYHOLE], "token_num_uses": 1});
    it.bao.api("POST", &format!("auth/token/roles/{CUBBYHOLE}"), too_few).await;
    fs::write(it.path("node.pub"), "not a key").unwrap();
    let key = it.path("node.pub");
    for (more, code, words) in [
        (vec!["--out", "/missing/secret-id"], SYSTEM, "cannot write /missing/secret-id"),
        (vec!["--seal", "/missing/node.pub"], SYSTEM, "cannot read /missing/node.pub"),
        (vec!["--seal", &key], USAGE, "-----BEGIN PUBLIC KEY-----"),
        (vec!["--seal", &key, "--cubbyhole"], USAGE, "cannot be used with"),
        (vec!["--wrap", "500ms"], USAGE, "at least 1s"),
        (vec!["--cubbyhole"], Some(1), "Vault refuses POST auth/token/create"),
        (vec!["--cubbyhole", "--token-role", "missing"], Some(1), "auth/token/create/missing"),
        (vec!["--cubbyhole", "--token-role", CUBBYHOLE], Some(1), "needs exactly 2"),
    ] {
        let ran = it.run(&[&issue[..], &more].concat()).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{ran:?}");
        assert!(ran.stderr.contains(words), "{words}: {ran:?}");
    }
    assert!(it.list(&[]).await.is_empty());

    // An output that fails at the end. The error says which secret_id to destroy.
    let script = format!("exec {} secret-id {} >/dev/full", repository::kmsctl(), issue.join(" "));
    let mut bash = command("bash");
    bash.args(["-c", &script]).env("VAULT_ADDR", it.bao.address()).env("VAULT_CACERT", it.bao.ca_file());
    let output = bash.env("VAULT_TOKEN", &it.requestor).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let listed = it.list(&[]).await;
    let accessor = listed[0]["accessor"].as_str().unwrap();
    assert!(said.contains(&format!("secret-id destroy --role {ROLE} --accessor {accessor}")), "{said}");
}

#[tokio::test]
async fn errors_of_vault_say_what_to_do() {
    let it = Introduction::start().await;
    let node = it.login(&it.issue(&[]).await).await;
    let issue = ["issue", "--role", ROLE, "--node", NODE];
    let refused = it.run_as(&node, &issue).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("permission denied. The token needs a policy"), "{refused:?}");
    let root = it.bao.root_token();
    for (arguments, words) in [
        (vec!["list", "--role", "missing"], "role \"missing\" does not exist"),
        (vec!["list", "--role", ROLE, "--mount", "missing"], "no handler for route"),
        (vec!["issue", "--role", ROLE, "--node", NODE, "--cidr", "nowhere"], "nowhere"),
        (vec!["list", "--role", ROLE, "--namespace", "missing"], "namespace"),
    ] {
        let ran = it.run_as(root, &arguments).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{ran:?}");
        assert!(ran.stderr.contains(words), "{words}: {ran:?}");
    }
    for arguments in [
        vec!["issue", "--role", "a/b", "--node", NODE],
        vec!["issue", "--role", ROLE, "--node", "a b"],
        vec!["list", "--role", ROLE, "--mount", "../sys"],
        vec!["destroy", "--role", ROLE],
        vec!["destroy", "--role", ROLE, "--node", NODE, "--accessor", "a"],
    ] {
        assert_eq!(it.run_as(root, &arguments).await.code, USAGE, "{arguments:?}");
    }
}

#[tokio::test]
async fn the_token_comes_from_a_variable_or_a_file() {
    let it = Introduction::start().await;
    let (address, ca) = (it.bao.address(), it.bao.ca_file().display().to_string());
    let (good, proxy) = (it.requestor.as_str(), closed_address());
    fs::write(it.path(".vault-token"), good).unwrap();
    fs::write(it.path("token"), format!("{good}\n")).unwrap();
    fs::write(it.path("empty"), "\n").unwrap();
    let (home, file, empty) = (it.path(""), it.path("token"), it.path("empty"));
    let list = async |more: &[&str], environment: &[(&str, &str)], input: &str| {
        let arguments = [&["secret-id", "list", "--role", ROLE, "--address", &address], more].concat();
        let all = [&[("VAULT_CACERT", ca.as_str()), ("HTTPS_PROXY", &*proxy)], environment].concat();
        run_kmsctl_with(&arguments, &all, input).await
    };
    for (more, environment, input) in [
        (vec![], vec![("VAULT_TOKEN", good)], ""),
        (vec![], vec![("BAO_TOKEN", good), ("VAULT_TOKEN", "wrong")], ""),
        (vec![], vec![("HOME", home.as_str()), ("VAULT_TOKEN", "")], ""),
        (vec!["--token-file", &file], vec![("VAULT_TOKEN", "wrong")], ""),
        (vec!["--token-file", "-"], vec![], good),
        (vec!["--ca-cert", &ca], vec![("VAULT_TOKEN", good), ("VAULT_CACERT", "/missing")], ""),
        (vec![], vec![("VAULT_TOKEN", good), ("BAO_ADDR", "https://192.0.2.1"), ("BAO_NAMESPACE", "")], ""),
    ] {
        let ran = list(&more, &environment, input).await;
        assert_eq!(ran.code, Some(0), "{more:?} {environment:?}: {ran:?}");
    }
    for (more, environment, code, words) in [
        (vec![], vec![], USAGE, "there is no token"),
        (vec!["--token-file", &empty], vec![], USAGE, "has no token"),
        (vec!["--token-file", "/missing"], vec![], SYSTEM, "cannot read /missing"),
        (vec!["--ca-cert", &file], vec![("VAULT_TOKEN", good)], USAGE, "has no certificate"),
        (vec![], vec![("VAULT_TOKEN", "two\nlines")], USAGE, "a character that no token has"),
        (vec![], vec![("VAULT_TOKEN", "bogus-token")], Some(1), "permission denied"),
        // The authorities of this machine do not know the test's.
        (vec![], vec![("VAULT_TOKEN", good), ("VAULT_CACERT", "")], Some(2), "VAULT_CACERT"),
    ] {
        let ran = list(&more, &environment, "").await;
        assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{ran:?}");
        assert!(ran.stderr.contains(words), "{words}: {ran:?}");
        assert!(!ran.stderr.contains(good) && !ran.stderr.contains("bogus-token"), "{ran:?}");
    }
}

/// A proxy in front of Vault is a fake here, because it has to do something wrong.
#[tokio::test]
async fn the_token_goes_to_the_named_server_only() {
    let other = HttpServer::start(async |_| answer(StatusCode::OK, "{}")).await;
    let to = format!("{}/v1/auth/approle/role/{ROLE}/secret-id", other.address());
    let redirecting = HttpServer::start(move |_| {
        let mut redirect = answer(StatusCode::TEMPORARY_REDIRECT, "");
        redirect.headers_mut().insert(LOCATION, HeaderValue::from_str(&to).unwrap());
        async { redirect }
    })
    .await;
    // It has dropped the header that asks for a wrap.
    let secret = r#"{"data": {"secret_id": "e46d3c17", "secret_id_accessor": "a"}}"#;
    let dropping = HttpServer::start(move |_| async move { answer(StatusCode::OK, secret) }).await;
    let page = HttpServer::start(async |_| answer(StatusCode::OK, "<html>")).await;

    let issue = ["secret-id", "issue", "--role", ROLE, "--node", NODE, "--wrap", "1h"];
    for (address, code, words) in [
        (redirecting.address(), Some(1), "would send the token there"),
        (dropping.address(), Some(1), "not in the requested form"),
        (page.address(), Some(1), "is not Vault's"),
        (closed_address().replace("https", "http"), Some(2), "does not answer"),
        ("http://192.0.2.1:8200".to_owned(), USAGE, "in clear"),
        ("vault:8200".to_owned(), USAGE, "https://"),
    ] {
        let environment = [("VAULT_ADDR", address.as_str()), ("VAULT_TOKEN", "operators-token")];
        let ran = run_kmsctl_with(&issue, &environment, "").await;
        assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{address}: {ran:?}");
        assert!(ran.stderr.contains(words), "{words}: {ran:?}");
        assert!(!ran.stderr.contains("operators-token") && !ran.stderr.contains("e46d3c17"), "{ran:?}");
    }
    assert!(other.seen().is_empty());
    let sent = &redirecting.seen()[0].headers;
    for (name, value) in
        [("x-vault-request", "true"), ("x-vault-token", "operators-token"), ("x-vault-wrap-ttl", "3600")]
    {
        assert_eq!(sent[name], value, "{name}");
    }
}
