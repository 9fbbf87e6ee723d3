//! Configs that do not work: none replaces a working one, and the reason for each is reported.

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use serde_json::json;
use testkit::{
    Bao, ConfigFile, Daemon, KEY, Load,
    calls::{decrypt, encrypt, round_trip, status},
    closed_address, config_file, eventually, policy,
};
use tonic::Code;

const WAIT_TIMEOUT: Duration = Duration::from_secs(10);

/// A config that does not work.
struct BadConfig {
    name: &'static str,
    /// Parts of the reported reason.
    reason: Vec<String>,
    /// The label of its metric.
    result: &'static str,
    text: String,
}

/// Two servers, and configs that do not work with the first.
struct Setup {
    bao: Bao,
    dir: tempfile::TempDir,
    other: Bao,
}

impl Setup {
    async fn start() -> Self {
        let (bao, other) = (Bao::start().await, Bao::start().await);
        Self { bao, dir: tempfile::tempdir().unwrap(), other }
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("config.yaml")
    }

    /// All configs that do not work.
    async fn bad(&self) -> Vec<BadConfig> {
        let bao = &self.bao;
        let good = ConfigFile::with_new_token(bao).await;
        let with_key = async |key: &str| {
            bao.policy(key, &policy("transit", key)).await;
            let token = bao.create_token(json!({"policies": [key], "ttl": "1h"})).await;
            ConfigFile { keys: vec![key.into()], ..ConfigFile::of(bao, &token) }.yaml()
        };
        bao.api("POST", "transit/keys/derived", json!({"derived": true})).await;
        bao.api("POST", "transit/keys/rsa", json!({"type": "rsa-2048"})).await;
        bao.api("POST", "transit/keys/forbidden", json!({})).await;
        let counted = bao.create_token(json!({"num_uses": 100, "ttl": "1h"})).await;
        let revoked = bao.token().await;
        bao.revoke(&revoked).await;
        let closed = closed_address();
        let without_token = |instead: &str| {
            let text = good.with_token("TOKEN").yaml();
            text.replace("  token: 'TOKEN'\n", instead)
        };
        let unusable_token = ["does not accept the token", "the agent has to render a new one"];
        let file = format!("{}:", self.config().display());
        let approle = json!({
            "method": "approle", "role_id": "role", "secret_id": "hidden", "state_dir": self.dir.path().join("state"),
        });
        vec![
            bad("bogus token", "refused", unusable_token, good.with_token("hvs.bogus").yaml()),
            bad("revoked token", "refused", unusable_token, good.with_token(&revoked).yaml()),
            bad(
                "token of another Vault",
                "refused",
                unusable_token,
                good.with_token(&self.other.token().await).yaml(),
            ),
            bad("counted token", "refused", ["num_uses=0"], good.with_token(&counted).yaml()),
            bad(
                "unreachable Vault",
                "pending",
                [closed.as_str(), "cannot be reached", "refused"],
                ConfigFile { addresses: vec![closed.clone()], ..good.clone() }.yaml(),
            ),
            bad(
                "no key of that name",
                "refused",
                ["transit/keys/absent", "vault.keynames"],
                with_key("absent").await,
            ),
            bad(
                "a key that the policy does not allow",
                "refused",
                ["grant `read` on transit/keys/forbidden"],
                ConfigFile { keys: vec!["forbidden".into()], ..good.clone() }.yaml(),
            ),
            bad(
                "derived key",
                "refused",
                ["derived", "create a key of type aes256-gcm96"],
                with_key("derived").await,
            ),
            bad(
                "rsa key",
                "refused",
                ["not of an authenticated symmetric type", "aes256-gcm96"],
                with_key("rsa").await,
            ),
            bad(
                "login by AppRole",
                "refused",
                [
                    "Vault has refused this credential twice",
                    "logs in again when vault.auth.secret_id changes",
                ],
                without_token(&format!("  auth: {approle}\n")),
            ),
            bad(
                "login by certificate",
                "refused",
                ["/c.pem", "does not exist"],
                without_token("  clientcert: '/c.pem'\n  clientkey: '/k.pem'\n"),
            ),
            bad(
                "broken YAML",
                "invalid",
                [format!("{file}8:").as_str(), "quote is not closed"],
                good.yaml().trim_end().trim_end_matches('\'').to_owned(),
            ),
            bad("no token", "invalid", [file.as_str(), "vault.token"], without_token("")),
            bad(
                "http",
                "invalid",
                [file.as_str(), "--allow-http"],
                good.yaml().replace("https://", "http://"),
            ),
        ]
    }
}

fn bad<const N: usize>(
    name: &'static str,
    result: &'static str,
    reason: [&str; N],
    text: String,
) -> BadConfig {
    BadConfig { name, reason: reason.map(str::to_owned).into(), result, text }
}

/// Waits until `/readyz` has the status `code` and names this reason.
async fn wait_reason(daemon: &Daemon, code: u16, bad: &BadConfig) -> String {
    eventually(bad.name, WAIT_TIMEOUT, async || {
        let (status, text) = daemon.admin("/readyz").await;
        let named = bad.reason.iter().all(|words| text.contains(words));
        if status == code && named { Ok(text) } else { Err(format!("{status} {text}")) }
    })
    .await
}

/// One config lists them all between the key that encrypts and the key that can decrypt.
#[tokio::test]
async fn unusable_keys_do_not_hide_the_keys_after_them() {
    let setup = Setup::start().await;
    let bao = &setup.bao;
    let middle = ["rsa", "ecdsa", "ed25519", "hmac", "derived", "forbidden", "unreadable", "gone"];
    for (key, options) in [
        ("rsa", json!({ "type": "rsa-2048" })),
        ("ecdsa", json!({ "type": "ecdsa-p256" })),
        ("ed25519", json!({ "type": "ed25519" })),
        ("hmac", json!({ "type": "hmac", "key_size": 32 })),
        ("derived", json!({ "derived": true })),
        ("forbidden", json!({})),
        ("unreadable", json!({})),
        ("old", json!({})),
    ] {
        bao.api("POST", &format!("transit/keys/{key}"), options).await;
    }
    let mut rules = policy("transit", KEY);
    for key in ["rsa", "ecdsa", "ed25519", "hmac", "derived", "gone", "old"] {
        rules += &policy("transit", key);
    }
    rules += "path \"transit/decrypt/unreadable\" { capabilities = [\"update\"] }\n";
    bao.policy("many", &rules).await;
    let token = bao.create_token(json!({"policies": ["many"], "ttl": "1h"})).await;
    let keys = [KEY].into_iter().chain(middle).chain(["old"]).map(Into::into).collect();
    let text = ConfigFile { keys, ..ConfigFile::of(bao, &token) }.yaml();
    config_file::by_rename(&setup.config(), &text);
    let daemon = Daemon::start(&setup.config()).await;
    let kms = daemon.kms().await;
    round_trip(&kms, "first").await;

    // Alone and together, because Vault responds differently to a batch.
    for number in 0..3_u8 {
        for key in ["rsa", "unreadable", "old"] {
            let mut calls = tokio::task::JoinSet::new();
            for item in 0..=number * 4 {
                let ciphertext = bao.encrypt(key, &[item; 32]).await;
                let kms = kms.clone();
                calls.spawn(async move {
                    assert_eq!(decrypt(&kms, ciphertext, "1", "many").await.unwrap(), [item; 32]);
                });
            }
            calls.join_all().await;
        }
    }
    // The most useful of nine errors is reported.
    let old = bao.encrypt("old", b"seed").await;
    bao.rotate_key("old").await;
    bao.api("POST", "transit/keys/old/config", json!({ "min_decryption_version": 2 })).await;
    let error = decrypt(&kms, old, "1", "too-old").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(
        error.message().contains("key `old`: ") && error.message().contains("min_decryption_version"),
        "{error}"
    );
    assert!(error.message().contains("key `hmac` is of type hmac, which cannot decrypt"), "{error}");
    for words in [
        "key `ecdsa` is of type ecdsa-p256, which cannot decrypt: take it out of vault.keynames",
        "key `derived` is derived and would need a context with every call: take it out of vault.keynames",
        "an additional key may not be used to decrypt; the other keys are still used",
        "an additional key cannot be read; Decrypts are still tried with it",
    ] {
        daemon.wait_printed(words).await;
    }
    // These errors affect neither the health of the node nor the session.
    assert_eq!(daemon.metric("transit_kms_vault_node_up", &[]).await, 1.0);
    assert!(!daemon.log().contains("a Vault node was ejected"), "a node was ejected");
    round_trip(&kms, "last").await;
}

#[tokio::test]
async fn a_bad_config_does_not_replace_a_working_one_and_the_next_good_one_is_used() {
    let setup = Setup::start().await;
    let (bao, config) = (&setup.bao, setup.config());
    let first = ConfigFile::with_new_token(bao).await;
    config_file::by_rename(&config, &first.yaml());
    let mut daemon = Daemon::start(&config).await;
    daemon.wait_ready().await;
    let pid = daemon.pid();
    let load = Load::start(&daemon, 2, Duration::from_millis(10)).await;

    let mut all = setup.bad().await;
    let theirs = ConfigFile::with_new_token(&setup.other).await;
    all.push(bad(
        "another Vault with a key of the same name",
        "refused",
        ["key `kms` is not the one that was in use under that name", "another Vault"],
        theirs.yaml(),
    ));
    for bad in &all {
        let before = daemon.reloads(bad.result).await;
        config_file::by_rename(&config, &bad.text);
        // Waits for the counter, because the previous config may have had the same reason.
        eventually(bad.name, WAIT_TIMEOUT, async || daemon.reloads(bad.result).await > before).await;
        let text = wait_reason(&daemon, 200, bad).await;
        assert!(text.contains("; the newest config is not in use: "), "{}: {text}", bad.name);
        assert_eq!(daemon.reloads(bad.result).await, before + 1, "{}", bad.name);
        assert_eq!(daemon.generation().await, 1, "{}", bad.name);
        let calls = load.calls();
        eventually("further calls", WAIT_TIMEOUT, async || load.calls() > calls + 8).await;
    }
    fs::remove_file(&config).unwrap();
    wait_reason(&daemon, 200, &bad("no file", "invalid", [config.to_str().unwrap()], String::new())).await;

    let last = ConfigFile::with_new_token(bao).await;
    config_file::by_rename(&config, &last.yaml());
    // At once, not at the next try of the pending candidate.
    eventually("the good config is in use", Duration::from_secs(3), async || daemon.generation().await == 2)
        .await;
    let (ready, text) = daemon.admin("/readyz").await;
    assert!(ready == 200 && !text.contains("not in use"), "{ready} {text}");
    bao.revoke(&first.token).await;
    let calls = load.calls();
    eventually("further calls", WAIT_TIMEOUT, async || load.calls() > calls + 20).await;
    load.stop().await.assert_nothing_failed();
    assert_eq!(daemon.reloads("success").await, 2);
    assert_eq!((daemon.exited(), daemon.pid()), (None, pid));
    daemon.assert_never_printed(&[&first.token, &theirs.token, &last.token, "hvs.bogus", "hidden"]);
}

#[tokio::test]
async fn at_start_status_gives_the_reason_and_the_first_good_config_is_used() {
    let setup = Setup::start().await;
    let config = setup.config();
    let mut said = BTreeSet::new();
    for bad in &setup.bad().await {
        config_file::by_rename(&config, &bad.text);
        let daemon = Daemon::start(&config).await;
        wait_reason(&daemon, 503, bad).await;
        let kms = daemon.kms().await;
        let refused = status(&kms).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{}: {refused:?}", bad.name);
        let named = bad.reason.iter().all(|words| refused.message().contains(words));
        assert!(named, "{}: {refused:?}", bad.name);
        assert_eq!(daemon.admin("/livez").await.0, 200, "{}", bad.name);
        assert_eq!((daemon.generation().await, daemon.reloads(bad.result).await), (0, 1), "{}", bad.name);
        said.insert(refused.message().to_owned());

        let good = ConfigFile::with_new_token(&setup.bao).await;
        config_file::by_rename(&config, &good.yaml());
        daemon.wait_generation(1).await;
        round_trip(&kms, "recovered").await;
    }
    assert!(said.len() >= 10, "{said:?}");
}

#[tokio::test]
async fn at_start_a_config_is_used_once_vault_is_up() {
    let mut bao = Bao::start().await;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yaml");
    config_file::by_rename(&config, &ConfigFile::with_new_token(&bao).await.yaml());
    bao.stop();
    let daemon = Daemon::start(&config).await;
    let outage = bad("Vault down", "pending", [&bao.address(), "cannot be reached"], String::new());
    wait_reason(&daemon, 503, &outage).await;
    bao.start_again_sealed().await;
    wait_reason(&daemon, 503, &bad("sealed", "pending", ["503", "sealed"], String::new())).await;
    bao.unseal().await;
    daemon.wait_generation(1).await;
    round_trip(&daemon.kms().await, "up").await;
    // A config is counted once, even if it is tried several times.
    assert_eq!((daemon.reloads("pending").await, daemon.reloads("success").await), (1, 1));
}

#[tokio::test]
async fn a_candidate_found_while_vault_is_down_is_used_once_vault_is_up() {
    let mut bao = Bao::start().await;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yaml");
    let first = ConfigFile::with_new_token(&bao).await;
    let next = ConfigFile::with_new_token(&bao).await;
    config_file::by_rename(&config, &first.yaml());
    let daemon = Daemon::start(&config).await;
    daemon.wait_ready().await;
    bao.stop();
    config_file::by_rename(&config, &next.yaml());
    let outage = bad("Vault down", "pending", [&bao.address(), "cannot be reached"], String::new());
    wait_reason(&daemon, 200, &outage).await;
    assert_eq!((daemon.generation().await, daemon.reloads("pending").await), (1, 1));
    bao.start_again().await;
    daemon.wait_generation(2).await;
    bao.revoke(&first.token).await;
    round_trip(&daemon.kms().await, "up").await;
    let (ready, text) = daemon.admin("/readyz").await;
    assert!(ready == 200 && !text.contains("not in use"), "{ready} {text}");
}

#[tokio::test]
async fn a_pending_candidate_is_dropped_when_the_old_file_is_restored() {
    let bao = Bao::start().await;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yaml");
    let good = ConfigFile::with_new_token(&bao).await;
    config_file::by_rename(&config, &good.yaml());
    let daemon = Daemon::start(&config).await;
    daemon.wait_ready().await;
    let closed = closed_address();
    let unreachable = ConfigFile { addresses: vec![closed.clone()], ..good.clone() };
    config_file::by_rename(&config, &unreachable.yaml());
    wait_reason(&daemon, 200, &bad("closed", "pending", [&closed], String::new())).await;
    config_file::by_rename(&config, &good.yaml());
    eventually("readyz reports no candidate", WAIT_TIMEOUT, async || {
        let (ready, text) = daemon.admin("/readyz").await;
        if ready == 200 && !text.contains("not in use") { Ok(()) } else { Err(text) }
    })
    .await;
    assert_eq!((daemon.generation().await, daemon.reloads("success").await), (1, 1));
    let state = async |state| daemon.metric("transit_kms_config_state", &[("state", state)]).await;
    assert_eq!((state("in_use").await, state("pending").await), (1.0, 0.0));
}

/// Enables Transit at `mount` of `namespace` (empty for the root), with a key.
async fn create_key_at(bao: &Bao, namespace: &str, mount: &str) {
    let at = |path: &str| if namespace.is_empty() { path.to_owned() } else { format!("{namespace}/{path}") };
    if !namespace.is_empty() {
        bao.api("POST", &format!("sys/namespaces/{namespace}"), json!({})).await;
    }
    bao.api("POST", &at(&format!("sys/mounts/{mount}")), json!({"type": "transit"})).await;
    bao.api("POST", &at(&format!("{mount}/keys/{KEY}")), json!({})).await;
}

/// Checks that a move from `old` to `new` is refused without the old key in `keynames`, and used with it.
async fn assert_move_needs_the_old_key(old: &ConfigFile, new: &ConfigFile, old_entry: serde_json::Value) {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yaml");
    config_file::by_rename(&config, &old.yaml());
    let daemon = Daemon::start(&config).await;
    daemon.wait_ready().await;
    let kms = daemon.kms().await;
    let load = Load::start(&daemon, 2, Duration::from_millis(10)).await;
    let before = encrypt(&kms, b"before", "before").await.unwrap();

    config_file::by_rename(&config, &new.yaml());
    let name = |field: &str| old_entry[field].as_str().unwrap().to_owned();
    let entry =
        format!("{{ name: {}, mount: {}, namespace: {} }}", name("name"), name("mount"), name("namespace"));
    let refusal = bad("refused", "refused", ["is not in vault.keynames", &entry, "restart"], String::new());
    wait_reason(&daemon, 200, &refusal).await;
    assert_eq!(daemon.reloads("refused").await, 1);
    let known = status(&kms).await.unwrap();
    assert_eq!((known.healthz.as_str(), &known.key_id), ("ok", &before.key_id));
    assert_eq!(decrypt(&kms, before.ciphertext.clone(), &before.key_id, "old").await.unwrap(), b"before"[..]);

    let mut keys = new.keys.clone();
    keys.push(old_entry);
    config_file::by_rename(&config, &ConfigFile { keys, ..new.clone() }.yaml());
    daemon.wait_generation(2).await;
    let after = encrypt(&kms, b"after", "after").await.unwrap();
    assert_ne!(after.key_id, before.key_id);
    assert_eq!(status(&kms).await.unwrap().key_id, after.key_id);
    for (sealed, plain) in [(before, &b"before"[..]), (after, &b"after"[..])] {
        assert_eq!(decrypt(&kms, sealed.ciphertext, &sealed.key_id, "both").await.unwrap(), plain);
    }
    // The load also calls Status and expects `ok`.
    let calls = load.calls();
    eventually("further calls", WAIT_TIMEOUT, async || load.calls() > calls + 20).await;
    load.stop().await.assert_nothing_failed();
    let (ready, text) = daemon.admin("/readyz").await;
    assert!(ready == 200 && !text.contains("not in use"), "{ready} {text}");
}

#[tokio::test]
async fn a_move_to_another_mount_needs_the_old_key_in_keynames() {
    let bao = Bao::start().await;
    create_key_at(&bao, "", "new").await;
    let rules = policy("transit", KEY) + &policy("new", KEY);
    bao.policy("both", &rules).await;
    let token = bao.create_token(json!({"policies": ["both"], "ttl": "1h"})).await;
    let old = ConfigFile::of(&bao, &token);
    let new = ConfigFile { mount: "new".into(), ..old.clone() };
    let entry = json!({"name": KEY, "mount": "transit", "namespace": "root"});
    assert_move_needs_the_old_key(&old, &new, entry).await;
}

#[tokio::test]
async fn a_move_to_another_namespace_needs_the_old_key_in_keynames() {
    let bao = Bao::start().await;
    if Bao::is_vault() {
        eprintln!("not tested: Vault has namespaces in its Enterprise edition only");
        return;
    }
    create_key_at(&bao, "team-a", "transit").await;
    create_key_at(&bao, "team-b", "transit").await;
    // A token of the root namespace is valid in child namespaces if its policy names their paths.
    let mut rules = policy("team-a/transit", KEY) + &policy("team-b/transit", KEY);
    for namespace in ["team-a", "team-b"] {
        rules += &format!("path \"{namespace}/auth/token/*\" {{ capabilities = [\"read\", \"update\"] }}\n");
    }
    bao.policy("both", &rules).await;
    let token = bao.create_token(json!({"policies": ["both"], "ttl": "1h"})).await;
    let old = ConfigFile { namespace: Some("team-a".into()), ..ConfigFile::of(&bao, &token) };
    let new = ConfigFile { namespace: Some("team-b".into()), ..old.clone() };
    let entry = json!({"name": KEY, "mount": "transit", "namespace": "team-a"});
    assert_move_needs_the_old_key(&old, &new, entry).await;
}

#[tokio::test]
async fn one_key_has_one_key_id_for_every_spelling_of_its_path() {
    let bao = Bao::start().await;
    if Bao::is_vault() {
        eprintln!("not tested: Vault has namespaces in its Enterprise edition only");
        return;
    }
    create_key_at(&bao, "team-a", "transit").await;
    bao.policy("a", &policy("team-a/transit", KEY)).await;
    let token = bao.create_token(json!({"policies": ["a"], "ttl": "1h"})).await;
    let by_namespace = ConfigFile { namespace: Some("/team-a/".into()), ..ConfigFile::of(&bao, &token) };
    let by_mount = ConfigFile { mount: "team-a/transit".into(), ..ConfigFile::of(&bao, &token) };
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yaml");
    config_file::by_rename(&config, &by_namespace.yaml());
    let daemon = Daemon::start(&config).await;
    daemon.wait_ready().await;
    let kms = daemon.kms().await;
    let sealed = encrypt(&kms, b"seed", "one").await.unwrap();
    config_file::by_rename(&config, &by_mount.yaml());
    daemon.wait_generation(2).await;
    assert_eq!(status(&kms).await.unwrap().key_id, sealed.key_id);
    assert_eq!(decrypt(&kms, sealed.ciphertext, &sealed.key_id, "two").await.unwrap(), b"seed"[..]);
}
