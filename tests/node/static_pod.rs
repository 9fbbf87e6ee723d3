//! The static pod, which needs nothing of the cluster.

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
    background_load::Scene,
    machine::{CREDENTIALS, SOCKET},
    node::NAME,
    node_env::{Site, ours},
    pods::pods,
};

const ROOT: &str = testkit::repository::ROOT;
const PATIENCE: Duration = Duration::from_secs(120);
/// The name of its manifest.
const KMS: &str = "transit-kms";
/// That of a manifest beside it, and of the pod in it.
const NEXT: &str = "transit-kms-next";
/// Its label.
const PODS: &str = "app.kubernetes.io/name=transit-kms";

fn upgrades() -> usize {
    if full() { 10 } else { 3 }
}

/// The manifest that we ship, with the images of this machine, for a pod of this name with this log level.
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

/// What an operator puts on the node, as the manifest says.
fn prepare(site: &Site) {
    let to = Path::new(CREDENTIALS);
    fs::create_dir_all(to.join("ca")).unwrap();
    fs::copy(site.bao.ca_file(), to.join("ca/ca.pem")).unwrap();
    for (from, name) in [("openbao/approle.hcl", "agent.hcl"), ("config.yaml.ctmpl", "config.yaml.ctmpl")] {
        let text = fs::read_to_string(Path::new(ROOT).join("manifests/agent").join(from)).unwrap();
        let example = "https://vault.example.com:8200";
        assert!(text.contains(example), "{text}");
        fs::write(to.join(name), text.replace(example, &site.bao.address())).unwrap();
    }
}

/// A node that is off, with the static pod on its disk.
async fn dark() -> Site {
    let site = Site::dark(&json!({})).await;
    prepare(&site);
    site.node.static_pod(KMS, &manifest(KMS, "info"));
    site
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[tokio::test]
async fn it_is_there_before_the_api_server_and_after_each_boot() {
    let mut site = dark().await;
    site.node.boot().await;
    let socket = site.wait_socket().await;
    // There is no API server yet.
    assert_eq!(site.plane.api().text("/version").await.0, 0);
    site.plane.give_api_server(&site.node, &ours());
    site.plane.wait_ready().await;
    site.write_secret("first").await.unwrap();
    site.plane.start_controllers();
    eventually("the API server knows the pod, and that it is ready", PATIENCE, async || {
        let found = pods(&site.plane.kubectl, PODS).await;
        if found.iter().any(|pod| pod.ready) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;

    // All at once, as a machine boots.
    site.power_off().await;
    let begun = Instant::now();
    site.boot().await;
    site.plane.wait_ready().await;
    let ready = begun.elapsed();
    assert_eq!(site.plane.api().secret("first").await.unwrap(), "first");
    site.wait_encrypted("second").await;

    // And now without Vault.
    site.power_off().await;
    site.bao.stop();
    site.boot().await;
    let early = site.wait_socket().await;
    let api = site.plane.api();
    eventually("kube-apiserver waits for us", PATIENCE, async || {
        let (status, text) = api.text("/readyz?verbose").await;
        if status == 500 && text.contains("kms-provider") { Ok(()) } else { Err(format!("{status} {text}")) }
    })
    .await;
    site.bao.start_again().await;
    let begun = Instant::now();
    site.plane.wait_ready().await;
    let healed = begun.elapsed();
    assert_eq!(site.plane.api().secret("second-1").await.unwrap(), "second-1");
    site.wait_encrypted("third").await;
    record_measurement(
        "node: static pod",
        &format!(
            "a socket {} after containerd is up, before there is an API server; after a reboot the API server is ready \
             in {} and reads its Secrets; with Vault away the socket is there in {}, and all heals {} after Vault is \
             back",
            seconds(socket),
            seconds(ready),
            seconds(early),
            seconds(healed),
        ),
    );
}

/// A node with the static pod, and an API server that uses it.
async fn served() -> Site {
    let mut site = dark().await;
    // With it at once: kubelet tells of a static pod that was there before the API server a minute later.
    site.plane.give_api_server(&site.node, &ours());
    site.node.boot().await;
    site.plane.wait_ready().await;
    site.plane.start_controllers();
    site
}

/// Waits until there is one static pod, it is ready, and it is not `last`; answers its name and uid.
async fn wait_other(site: &Site, last: &Option<(String, String)>) -> Option<(String, String)> {
    eventually("there is one new pod, and it is ready", PATIENCE, async || {
        let found = pods(&site.plane.kubectl, PODS).await;
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

/// kubelet starts the new pod ten to fifteen seconds after it has found the old one still there.
#[tokio::test]
async fn an_upgrade_in_place_leaves_a_gap_that_is_measured() {
    let site = served().await;
    let mut last = wait_other(&site, &None).await;
    let load = ApiLoad::start(&[site.plane.api(), site.plane.api()], "in-place");
    let gaps = Gaps::measure(Path::new(SOCKET));
    for turn in 0..upgrades() {
        let so_far = load.calls();
        eventually("load goes on", PATIENCE, async || load.calls() > so_far + 6).await;
        site.node.static_pod(KMS, &manifest(KMS, if turn % 2 == 0 { "debug" } else { "info" }));
        last = wait_other(&site, &last).await;
    }
    let gaps = gaps.stop(upgrades()).await;
    let requests = load.stop().await.requests;
    // It has its seeds.
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

/// As docs/upgrades.md has it: under another name the new pod runs beside the old one, and `--takeover` does the rest.
#[tokio::test]
async fn beside_the_old_pod_the_new_one_takes_over_and_no_call_fails() {
    let site = served().await;
    let mut last = wait_other(&site, &None).await;
    let scene = Scene::set(&site).await;
    let mut names = [KMS, NEXT];
    for _ in 0..upgrades() {
        scene.goes_on().await;
        let [old, new] = names;
        site.node.static_pod(new, &manifest(new, "info"));
        // It is so once it has the path.
        eventually("the new one is ready", PATIENCE, async || {
            let found = pods(&site.plane.kubectl, PODS).await;
            let name = format!("{new}-{NAME}");
            if found.iter().any(|pod| pod.ready && pod.name == name) {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        })
        .await;
        site.node.remove_static_pod(old);
        last = wait_other(&site, &last).await;
        names.reverse();
    }
    scene.goes_on().await;
    let counted = scene.end(&site).await;
    record_measurement("node: static pod", &format!("{} upgrades beside the old pod: {counted}", upgrades()));
}
