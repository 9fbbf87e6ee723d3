//! transit-kms logs in itself, without an agent: as a static pod and with the chart.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use testkit::{
    cluster::record_measurement,
    config_file, eventually,
    login::{self, Jwt},
};

use crate::{
    background_load::BackgroundLoad,
    helm::{Helm, PODS, RELEASE},
    machine::{CREDENTIALS, STATE},
    node_env::{NodeEnv, transit_kms_first},
    pods::pods,
};

const ROOT: &str = testkit::repository::ROOT;
const PATIENCE: Duration = Duration::from_secs(120);
const MANIFEST: &str = "transit-kms";
const LOGINS: &str = "transit_kms_logins_total";
/// The values of the chart for a login with a wrapped secret_id.
const WRAPPED: [&str; 5] = [
    "agent.enabled=false",
    "auth.method=approle",
    "auth.delivery=wrapped",
    "auth.role=transit-kms",
    "auth.secretIdFile=wrapped_secret_id",
];
/// What transit-kms says of a delivery that another party has opened.
const INTERCEPTION: &str = "POSSIBLE INTERCEPTION";

/// Token settings of a role whose tokens are replaced every few seconds. Three logins must fit into a minute for each
/// identity, because transit-kms limits the rate of its logins.
fn short_lived() -> Value {
    json!({"token_ttl": "6s", "token_max_ttl": "6s"})
}

/// Token settings of a role whose tokens outlive the test.
fn long_lived() -> Value {
    json!({"token_ttl": "1h", "token_max_ttl": "2h"})
}

/// Writes the files that an operator puts on the node, as the comments of `manifests/login/static-pod.yaml` say.
async fn prepare(env: &NodeEnv) -> Jwt {
    let to = Path::new(CREDENTIALS);
    fs::create_dir_all(to.join("ca")).unwrap();
    fs::copy(env.bao.ca_file(), to.join("ca/ca.pem")).unwrap();
    login::certificate(&env.bao, to, &short_lived()).await;
    Jwt::issued(&env.bao, &to.join("jwt"), &long_lived()).await
}

/// Installs the config file of this method from `manifests/login`.
fn configure(env: &NodeEnv, method: &str) {
    let text = fs::read_to_string(format!("{ROOT}/manifests/login/{method}.yaml")).unwrap();
    let example = "https://vault.example.com:8200";
    assert!(text.contains(example), "{text}");
    let text = text.replace(example, &env.bao.address());
    config_file::by_rename(&Path::new(CREDENTIALS).join("config.yaml"), &text);
}

async fn logins(env: &NodeEnv, method: &str, result: &str) -> f64 {
    env.metric_with(LOGINS, &[("method", method), ("result", result)]).await
}

/// Waits for this number of successful logins.
async fn wait_logins(env: &NodeEnv, method: &str, count: f64) {
    eventually(&format!("{count} logins with {method}"), PATIENCE, async || {
        let found = logins(env, method, "ok").await;
        if found >= count { Ok(()) } else { Err(found) }
    })
    .await;
}

/// Boots the node while Vault is away, and waits until it serves what it can without Vault.
async fn boot_without_vault(env: &mut NodeEnv, method: &str, secret: &str) {
    env.power_off().await;
    env.boot_without_controllers().await;
    env.wait_socket().await;
    let api = env.control_plane.api();
    eventually("kube-apiserver waits for the plugin", PATIENCE, async || {
        let (status, text) = api.text("/readyz?verbose").await;
        if status == 500 && text.contains("[-]kms-provider") {
            Ok(())
        } else {
            Err(format!("{status} {text}"))
        }
    })
    .await;
    eventually("kube-apiserver serves what is not encrypted", PATIENCE, async || {
        let (status, text) = api.text("/api/v1/namespaces/kube-system").await;
        if status == 200 { Ok(()) } else { Err(format!("{status} {text}")) }
    })
    .await;
    assert_eq!(api.secret(secret).await.unwrap_err().status, 500);
    eventually("a login fails because Vault is away", PATIENCE, async || {
        logins(env, method, "away").await > 0.0
    })
    .await;
}

#[tokio::test]
async fn a_static_pod_without_an_agent_replaces_tokens_under_load_and_survives_two_boots_without_vault() {
    let mut env = NodeEnv::without_credentials().await;
    let mut jwt = prepare(&env).await;
    configure(&env, "jwt");
    let manifest = fs::read_to_string(format!("{ROOT}/manifests/login/static-pod.yaml")).unwrap();
    env.node.static_pod(MANIFEST, &manifest);
    env.control_plane.run_api_server(&env.node, &transit_kms_first());
    env.node.boot().await;
    env.control_plane.wait_ready().await;
    env.wait_encrypted("first").await;

    let load = BackgroundLoad::start(&env).await;
    let begun = Instant::now();
    configure(&env, "cert");
    wait_logins(&env, "cert", 3.0).await;
    let before = logins(&env, "jwt", "ok").await;
    login::jwt_role(&env.bao, &short_lived()).await;
    jwt.renew();
    configure(&env, "jwt");
    wait_logins(&env, "jwt", before + 3.0).await;
    load.wait_for_more().await;
    let took = begun.elapsed();
    let counted = load.finish(&env).await;
    for method in ["cert", "jwt"] {
        assert_eq!(logins(&env, method, "refused").await, 0.0, "{method}");
    }
    record_measurement(
        "node: login",
        &format!(
            "static pod: two changes of the method and four replaced tokens in {:.0} s; {counted}",
            took.as_secs_f64()
        ),
    );

    login::certificate_role(&env.bao, &long_lived()).await;
    login::jwt_role(&env.bao, &long_lived()).await;
    for method in ["cert", "jwt"] {
        let before = logins(&env, method, "ok").await;
        configure(&env, method);
        wait_logins(&env, method, before + 1.0).await;
        let secret = env.wait_encrypted(&format!("before-{method}")).await;
        env.bao.stop();
        for _ in 0..2 {
            boot_without_vault(&mut env, method, &secret).await;
        }
        env.bao.start_again().await;
        let begun = Instant::now();
        env.control_plane.wait_ready().await;
        let recovered = begun.elapsed();
        assert_eq!(env.control_plane.api().secret(&secret).await.unwrap(), secret);
        env.wait_encrypted(&format!("after-{method}")).await;
        assert_eq!(logins(&env, method, "refused").await, 0.0, "{method}");
        record_measurement(
            "node: login",
            &format!(
                "static pod with {method}: after two boots without Vault, the API server is ready {:.1} s after Vault \
                 starts",
                recovered.as_secs_f64()
            ),
        );
    }
}

#[tokio::test]
async fn the_chart_with_a_wrapped_secret_id_needs_a_delivery_for_each_pod_and_no_agent() {
    let mut env = NodeEnv::without_credentials().await.boot_without_encryption().await;
    let credentials = Path::new(CREDENTIALS);
    // One login in 15 to 20 seconds: those of both pods must stay below the limit for a minute.
    let settings = json!({"token_ttl": "10s", "token_max_ttl": "20s"});
    login::approle_without_secret_id(&env.bao, credentials, &settings).await;
    login::deliver_wrapped(&env.bao, credentials).await;
    let helm = Helm::new(4, &env.control_plane.kubectl, &env.bao);
    let ran = helm.upgrade(&WRAPPED).await;
    assert!(ran.good, "{ran:?}\n{}", env.described().await);
    env.encrypt().await;
    env.control_plane.start_controllers();
    let pod = env.pod().await;

    let load = BackgroundLoad::start(&env).await;
    let begun = Instant::now();
    let before = logins(&env, "approle", "ok").await;
    wait_logins(&env, "approle", before + 1.0).await;
    let set = format!("daemonset/{RELEASE}");
    env.kubectl(&["rollout", "restart", &set, "-n", "kube-system"]).await.unwrap();
    let waiting = eventually("the new pod needs a delivery", PATIENCE, async || {
        let found = pods(&env.control_plane.kubectl, PODS).await;
        let new = found.iter().find(|one| one.uid != pod.uid).ok_or_else(|| format!("{found:?}"))?;
        let log = env.node.pod_logs(&new.uid);
        if log.contains("this machine has used the delivery") { Ok(new.clone()) } else { Err(log) }
    })
    .await;
    assert!(!waiting.ready, "{waiting:?}");
    load.wait_for_more().await;
    login::deliver_wrapped(&env.bao, credentials).await;
    let next = env.pod().await;
    assert_eq!((&next.uid, next.restarts), (&waiting.uid, 0));
    load.wait_for_more().await;
    let took = begun.elapsed();
    let counted = load.finish(&env).await;
    env.wait_encrypted("after").await;
    let logs = env.node.pod_logs(RELEASE);
    assert!(!logs.contains(INTERCEPTION), "{logs}");
    let state = Path::new(STATE).join("logins.json");
    assert_eq!(fs::metadata(&state).unwrap().mode() & 0o777, 0o600);
    record_measurement(
        "node: login",
        &format!(
            "chart with a wrapped secret_id: a replaced token and a rollout in {:.0} s; {counted}",
            took.as_secs_f64()
        ),
    );
}
