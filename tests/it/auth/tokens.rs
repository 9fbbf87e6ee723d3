//! What the answers to logins may contain, and where logins go.

use serde_json::{Value, json};
use testkit::{Caller, RELOAD_TIMEOUT, TestEnv, eventually};

use super::cases::{ROLE, login_tokens, token_settings};

/// A server with an AppRole that needs no secret_id, and a config that logs in with it.
async fn env_with(token: Value) -> TestEnv {
    let mut env = TestEnv::without_file().await;
    let mut role = token_settings("1h", "2h");
    role["bind_secret_id"] = json!(false);
    role["token_bound_cidrs"] = json!(["127.0.0.0/8"]);
    for (name, value) in token.as_object().unwrap() {
        role[name] = value.clone();
    }
    let path = format!("auth/approle/role/{ROLE}");
    env.bao.api("POST", &path, role).await;
    let role_id = env.bao.api("GET", &format!("{path}/role-id"), Value::Null).await;
    let state_dir = env.dir().join("state");
    env.render_auth(json!({
        "method": "approle", "role_id": role_id["data"]["role_id"], "state_dir": state_dir,
    }));
    env
}

#[tokio::test]
async fn a_batch_token_is_replaced_before_it_ends_and_explained() {
    let settings = json!({ "token_type": "batch", "token_ttl": "6s", "token_max_ttl": "6s" });
    let env = env_with(settings).await;
    let (daemon, caller) = env.ready([]).await;
    daemon.wait_printed("the login brings a batch token").await;
    daemon.wait_generation(3).await;
    caller.round_trip().await;
    assert_eq!(daemon.metric("transit_kms_token_renewals_total", &[]).await, 0.0, "it cannot be renewed");
}

#[tokio::test]
async fn a_token_with_limited_uses_is_refused_with_the_setting_to_change() {
    let env = env_with(json!({ "token_num_uses": 5 })).await;
    let daemon = env.daemon([]).await;
    eventually("it is explained", RELOAD_TIMEOUT, async || {
        let (_, said) = daemon.admin("/readyz").await;
        if said.contains("token_num_uses=0") { Ok(()) } else { Err(said) }
    })
    .await;
}

#[tokio::test]
async fn the_policy_default_and_a_short_ttl_are_warned_about() {
    let env = env_with(json!({ "token_no_default_policy": false, "token_ttl": "1m" })).await;
    let (daemon, _) = env.ready([]).await;
    daemon.wait_printed("set token_no_default_policy=true in the role").await;
    daemon.wait_printed("a token with a short TTL").await;
}

#[tokio::test]
async fn a_login_from_a_foreign_address_is_explained() {
    let env = env_with(json!({ "token_bound_cidrs": ["192.0.2.0/24"] })).await;
    let daemon = env.daemon([]).await;
    eventually("it is explained", RELOAD_TIMEOUT, async || {
        let (_, said) = daemon.admin("/readyz").await;
        if said.contains("bound CIDRs") { Ok(()) } else { Err(said) }
    })
    .await;
    assert_eq!(daemon.metric("transit_kms_logins_total", &[("result", "refused")]).await, 0.0);
}

#[tokio::test]
async fn the_login_may_be_in_another_namespace_than_the_keys() {
    let mut env = TestEnv::without_file().await;
    let (status, _) = env.bao.api_as(env.bao.root_token(), "POST", "sys/namespaces/team-a", json!({})).await;
    assert!((200..300).contains(&status) || testkit::Bao::is_vault(), "only Vault Community has none");
    if testkit::Bao::is_vault() {
        return;
    }
    for (path, body) in
        [("team-a/sys/mounts/transit", json!({ "type": "transit" })), ("team-a/transit/keys/kms", json!({}))]
    {
        env.bao.api("POST", path, body).await;
    }
    let rules = testkit::policy("team-a/transit", "kms");
    env.bao.policy("team-a", &rules).await;
    let path = format!("auth/approle/role/{ROLE}");
    let mut role = token_settings("6s", "12s");
    role["token_policies"] = json!(["team-a"]);
    role["bind_secret_id"] = json!(false);
    role["token_bound_cidrs"] = json!(["127.0.0.0/8"]);
    env.bao.api("POST", &path, role).await;
    let role_id = env.bao.api("GET", &format!("{path}/role-id"), Value::Null).await;
    env.rendered.namespace = Some("team-a".into());
    env.rendered.mount = "transit".into();
    let state_dir = env.dir().join("state");
    env.render_auth(json!({
        "method": "approle", "namespace": "root", "role_id": role_id["data"]["role_id"], "state_dir": state_dir,
    }));
    let (daemon, caller) = env.ready([]).await;
    daemon.wait_generation(2).await;
    caller.round_trip().await;
    assert!(!daemon.log().contains("the token could not be renewed"), "{}", daemon.log());
    Caller::of(&daemon).await.round_trip().await;
}

#[tokio::test]
async fn a_rendered_token_replaces_that_of_a_login_which_is_revoked() {
    let mut env = env_with(json!({})).await;
    let (mut daemon, caller) = env.ready([]).await;
    assert_eq!(login_tokens(&env).await, 1);
    let token = env.bao.token().await;
    env.rendered.auth = None;
    env.render_and_wait(&daemon, &token).await;
    eventually("the token of the login is revoked", RELOAD_TIMEOUT, async || login_tokens(&env).await == 0)
        .await;
    caller.round_trip().await;

    assert!(daemon.terminate().await.success());
    let (status, _) = env.bao.api_as(&token, "GET", "auth/token/lookup-self", Value::Null).await;
    assert_eq!(status, 200, "a rendered token is never revoked");
}
