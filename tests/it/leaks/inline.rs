//! Credentials that travel with each request.

use std::{fs, path::Path, time::Duration};

use serde_json::{Value, json};
use testkit::{Bao, Caller, RELOAD_TIMEOUT, TestEnv, eventually, login};

use super::{
    assert_no_secret_of_process, query_everything,
    secrets::{Output, Secrets, sentinel},
};

const EXPLAINED_WITHIN: Duration = Duration::from_secs(30);

#[tokio::test]
async fn an_inline_secret_id_does_not_leak() {
    if Bao::is_vault() {
        return;
    }
    let env = TestEnv::without_file().await;
    let dir = env.dir().to_owned();
    login::approle(&env.bao, &dir, &json!({})).await;
    let inner = json!({
        "method": "approle", "role_id_file": dir.join("role_id"), "secret_id_file": dir.join("secret_id"),
    });
    nothing_leaks(env, inner, &dir.join("secret_id"), &sentinel()).await;
}

#[tokio::test]
async fn an_inline_jwt_does_not_leak() {
    if Bao::is_vault() {
        return;
    }
    let env = TestEnv::without_file().await;
    let file = env.dir().join("jwt");
    let _issuer = login::Jwt::issued(&env.bao, &file, &json!({})).await;
    let jwt = fs::read_to_string(&file).unwrap();
    let (signed, _) = jwt.rsplit_once('.').unwrap();
    // The signature of an Ed25519 key has 86 characters in base64.
    let forged = format!("{signed}.{}", "A".repeat(86));
    let inner = json!({ "method": "jwt", "role": login::ROLE, "jwt_file": file });
    nothing_leaks(env, inner, &file, &forged).await;
}

#[tokio::test]
async fn an_inline_password_does_not_leak() {
    if Bao::is_vault() {
        return;
    }
    let env = TestEnv::without_file().await;
    let file = env.dir().join("password");
    let password = sentinel();
    fs::write(&file, &password).unwrap();
    env.bao.api("POST", "sys/auth/userpass", json!({ "type": "userpass" })).await;
    let mut user = login::role(&json!({}));
    user["password"] = json!(password);
    env.bao.api("POST", "auth/userpass/users/node-1", user).await;
    let inner = json!({ "method": "userpass", "username": "node-1", "password_file": file });
    nothing_leaks(env, inner, &file, &sentinel()).await;
}

/// Runs daemons with the credential in `file`, which is right, then with `wrong`, then without Vault.
async fn nothing_leaks(mut env: TestEnv, inner: Value, file: &Path, wrong: &str) {
    let mut secrets = Secrets::default();
    secrets.add("the credential", fs::read_to_string(file).unwrap());
    secrets.add("the wrong credential", wrong);
    let right = fs::read_to_string(file).unwrap();
    env.render_auth(json!({ "method": "inline", "login": inner }));
    let mut said = Output::default();
    for format in ["text", "json"] {
        let arguments = ["--log-level", "trace", "--log-format", format];
        let seed: [u8; 32] = rand::random();
        fs::write(file, &right).unwrap();
        let (mut daemon, caller) = env.ready(arguments).await;
        caller.round_trip().await;
        query_everything(&daemon, &mut said, &seed).await;
        assert_no_secret_of_process(&daemon, &secrets);
        assert!(daemon.terminate().await.success());
        said.add("the log of the right credential", daemon.log());

        fs::write(file, wrong).unwrap();
        let mut daemon = env.daemon(arguments).await;
        eventually("the refusal is logged", EXPLAINED_WITHIN, async || {
            daemon.log().contains("the new config is not in use yet")
        })
        .await;
        query_everything(&daemon, &mut said, &seed).await;
        said.add_error("Status", &Caller::of(&daemon).await.status().await.unwrap_err());
        env.bao.stop();
        eventually("Vault is away", RELOAD_TIMEOUT, async || {
            daemon.log().contains("a connection failed") || daemon.log().contains("cannot be reached")
        })
        .await;
        query_everything(&daemon, &mut said, &seed).await;
        assert!(daemon.terminate().await.success());
        said.add("the log of the wrong credential", daemon.log());
        env.bao.start_again().await;
    }
    secrets.assert_none_in(&said);
    said.assert_no_token();
}
