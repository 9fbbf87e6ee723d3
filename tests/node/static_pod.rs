//! The static pod, which does not depend on the cluster.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use testkit::{
    Gaps,
    cluster::{ApiLoad, record_measurement},
    eventually, full,
};

use crate::{
    background_load::BackgroundLoad,
    machine::{CREDENTIALS, SOCKET},
    node::NAME,
    node_env::{NodeEnv, transit_kms_first},
    pods::pods,
};

const ROOT: &str = testkit::repository::ROOT;
const PATIENCE: Duration = Duration::from_secs(120);
/// The name of the manifest.
const MANIFEST: &str = "transit-kms";
/// The name of the manifest of an upgrade that runs next to the old pod.
const NEXT_MANIFEST: &str = "transit-kms-next";
/// The label selector of both pods.
const PODS: &str = "app.kubernetes.io/name=transit-kms";

fn upgrades() -> usize {
    if full() { 10 } else { 3 }
}

/// Returns `manifests/static-pod.yaml` with local images, for a pod of this name with this log level.
fn manifest(name: &str, log_level: &str) -> String {
    let text = fs::read_to_string(Path::new(ROOT).join("manifests/static-pod.yaml")).unwrap();
    let mut pod: Value = serde_yaml::from_str(&text).unwrap();
    pod["metadata"]["name"] = json!(name);
    let spec = &mut pod["spec"];
    spec["initContainers"][0]["image"] = json!("localhost/openbao:test");
    let arguments = spec["containers"][0]["args"].as_array_mut().unwrap();
    let level = arguments.iter_mut().find(|one| one.as_str().unwrap().starts_with("--log-level")).unwrap();
    *level = json!(format!("--log-level={log_level}"));
    pod.to_string()
}

/// Writes the files that an operator puts on the node, as the manifest's comments say.
fn prepare(env: &NodeEnv) {
    let to = Path::new(CREDENTIALS);
    fs::create_dir_all(to.join("ca")).unwrap();
    fs::copy(env.bao.ca_file(), to.join("ca/ca.pem")).unwrap();
    for (from, name) in [("openbao/approle.hcl", "agent.hcl"), ("config.yaml.ctmpl", "config.yaml.ctmpl")] {
        let text = fs::read_to_string(Path::new(ROOT).join("manifests/agent").join(from)).unwrap();
        let example = "https://vault.example.com:8200";
        assert!(text.contains(example), "{text}");
        fs::write(to.join(name), text.replace(example, &env.bao.address())).unwrap();
    }
}

/// Returns a node that is powered off, with the static pod on its disk.
async fn powered_off() -> NodeEnv {
    let env = NodeEnv::powered_off(&json!({})).await;
    prepare(&env);
    env.node.static_pod(MANIFEST, &manifest(MANIFEST, "info"));
    env
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[tokio::test]
async fn a_static_pod_serves_before_the_api_server_starts_and_after_each_boot() {
    let mut env = powered_off().await;
    env.node.boot().await;
    let socket = env.wait_socket().await;
    // There is no API server yet.
    assert_eq!(env.control_plane.api().text("/version").await.0, 0);
    env.control_plane.run_api_server(&env.node, &transit_kms_first());
    env.control_plane.wait_ready().await;
    env.write_secret("first").await.unwrap();
    env.control_plane.start_controllers();
    eventually("the API server knows the pod, and that it is ready", PATIENCE, async || {
        let found = pods(&env.control_plane.kubectl, PODS).await;
        if found.iter().any(|pod| pod.ready) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;

    // Start everything at once, as a real machine does.
    env.power_off().await;
    let begun = Instant::now();
    env.boot().await;
    env.control_plane.wait_ready().await;
    let ready = begun.elapsed();
    assert_eq!(env.control_plane.api().secret("first").await.unwrap(), "first");
    env.wait_encrypted("second").await;

    // The same without Vault.
    env.power_off().await;
    env.bao.stop();
    env.boot().await;
    let early = env.wait_socket().await;
    let api = env.control_plane.api();
    eventually("kube-apiserver waits for the plugin", PATIENCE, async || {
        let (status, text) = api.text("/readyz?verbose").await;
        if status == 500 && text.contains("kms-provider") { Ok(()) } else { Err(format!("{status} {text}")) }
    })
    .await;
    env.bao.start_again().await;
    let begun = Instant::now();
    env.control_plane.wait_ready().await;
    let recovered = begun.elapsed();
    assert_eq!(env.control_plane.api().secret("second-1").await.unwrap(), "second-1");
    env.wait_encrypted("third").await;
    record_measurement(
        "node: static pod",
        &format!(
            "a socket {} after containerd is up, before there is an API server; after a reboot the API server is ready \
             in {} and reads its Secrets; without Vault the socket exists after {}, and the API server is ready {} after Vault \
             starts",
            seconds(socket),
            seconds(ready),
            seconds(early),
            seconds(recovered),
        ),
    );
}

/// Starts a node with the static pod, and an API server that uses it.
async fn started() -> NodeEnv {
    let mut env = powered_off().await;
    // Start the API server together with the static pod: kubelet reports an earlier static pod a minute later.
    env.control_plane.run_api_server(&env.node, &transit_kms_first());
    env.node.boot().await;
    env.control_plane.wait_ready().await;
    env.control_plane.start_controllers();
    env
}

/// Waits until there is exactly one static pod, it is ready, and it is not `last`. Returns its name and uid.
async fn wait_other(env: &NodeEnv, last: &Option<(String, String)>) -> Option<(String, String)> {
    eventually("there is one new pod, and it is ready", PATIENCE, async || {
        let found = pods(&env.control_plane.kubectl, PODS).await;
        match &found[..] {
            [pod] if pod.ready => {
                let seen = Some((pod.name.clone(), pod.uid.clone()));
                if seen == *last { Err(format!("{found:?}")) } else { Ok(seen) }
            }
            _ => Err(format!("{found:?}")),
        }
    })
    .await
}

/// Measures the gap: kubelet finds the old pod still running, and retries ten to fifteen seconds later.
#[tokio::test]
async fn no_api_request_fails_during_the_gap_of_an_upgrade_in_place() {
    let env = started().await;
    let mut last = wait_other(&env, &None).await;
    let load = ApiLoad::start(&[env.control_plane.api(), env.control_plane.api()], "in-place");
    let gaps = Gaps::measure(Path::new(SOCKET));
    for turn in 0..upgrades() {
        let so_far = load.calls();
        eventually("the load continues", PATIENCE, async || load.calls() > so_far + 6).await;
        env.node.static_pod(MANIFEST, &manifest(MANIFEST, if turn % 2 == 0 { "debug" } else { "info" }));
        last = wait_other(&env, &last).await;
    }
    let gaps = gaps.stop(upgrades()).await;
    let requests = load.stop().await.requests;
    // kube-apiserver has its DEK seeds in memory.
    requests.assert_nothing_failed();
    let gaps: Vec<_> = gaps.into_iter().map(seconds).collect();
    record_measurement(
        "node: static pod",
        &format!(
            "{} upgrades in place: no call on the socket is answered for {}; of {} requests to kube-apiserver {} failed",
            upgrades(),
            gaps.join(", "),
            requests.calls,
            requests.failed,
        ),
    );
}

/// The procedure of docs/upgrades.md: the new pod has another name and runs next to the old one, and `--takeover`
/// moves the socket.
#[tokio::test]
async fn no_call_fails_when_a_new_pod_takes_over_from_the_old_one() {
    let env = started().await;
    let mut last = wait_other(&env, &None).await;
    let load = BackgroundLoad::start(&env).await;
    let mut names = [MANIFEST, NEXT_MANIFEST];
    for _ in 0..upgrades() {
        load.wait_for_more().await;
        let [old, new] = names;
        env.node.static_pod(new, &manifest(new, "info"));
        // The new pod becomes ready once it owns the socket.
        eventually("the new pod is ready", PATIENCE, async || {
            let found = pods(&env.control_plane.kubectl, PODS).await;
            let name = format!("{new}-{NAME}");
            if found.iter().any(|pod| pod.ready && pod.name == name) {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        })
        .await;
        env.node.remove_static_pod(old);
        last = wait_other(&env, &last).await;
        names.reverse();
    }
    load.wait_for_more().await;
    let counted = load.finish(&env).await;
    record_measurement(
        "node: static pod",
        &format!("{} upgrades next to the old pod: {counted}", upgrades()),
    );
}
