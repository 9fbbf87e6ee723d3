//! The static pod, which needs nothing of the cluster.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    cluster::{ApiLoad, figure},
    machine::{CREDENTIALS, SOCKET},
    pods::pods,
    site::{Site, ours},
    support::{Gaps, eventually, full},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const PATIENCE: Duration = Duration::from_secs(60);
/// The name of its manifest.
const KMS: &str = "transit-kms";
/// Any that no other pod of the node has.
const UID: &str = "6b6d7300-0000-4000-8000-000000000001";
/// Another name of our image: of the same pod kubelet starts a container again if its image changes.
const SAME_IMAGE: &str = "localhost/transit-kms:again";
/// Its label.
const PODS: &str = "app.kubernetes.io/name=transit-kms";

fn upgrades() -> usize {
    if full() { 10 } else { 3 }
}

/// The manifest that we ship, with the images of this machine, with this log level and, if given, this uid.
fn manifest(log_level: &str, uid: Option<&str>) -> String {
    let text = fs::read_to_string(Path::new(ROOT).join("manifests/static-pod.yaml")).unwrap();
    let mut pod: Value = serde_yaml::from_str(&text).unwrap();
    if let Some(uid) = uid {
        pod["metadata"]["uid"] = json!(uid);
    }
    let spec = &mut pod["spec"];
    spec["initContainers"][0]["image"] = json!("localhost/openbao:test");
    let daemon = &mut spec["containers"][0];
    if uid.is_some() && log_level == "debug" {
        daemon["image"] = json!(SAME_IMAGE);
    }
    let arguments = daemon["args"].as_array_mut().unwrap();
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
    site.node.static_pod(KMS, &manifest("info", None));
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
    figure(
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

#[tokio::test]
async fn its_upgrade_leaves_a_gap_that_is_measured() {
    let mut site = dark().await;
    site.plane.give_api_server(&site.node, &ours());
    site.node.boot().await;
    site.plane.wait_ready().await;
    site.plane.start_controllers();
    upgrades_of(&site, "another pod each time, as kubelet has it", None).await;
    // Else kubelet makes one of the manifest, and takes a changed one for another pod, to be started ten to
    // fifteen seconds after it has found the old one still there.
    let image = format!("localhost/transit-kms:{}", env!("CARGO_PKG_VERSION"));
    site.node.ctr(&["images", "tag", &image, SAME_IMAGE]);
    site.node.static_pod(KMS, &manifest("info", Some(UID)));
    upgrades_of(&site, "the same pod, by metadata.uid", Some(UID)).await;
}

/// Upgrades under load; nothing but the figures is asserted of the socket.
async fn upgrades_of(site: &Site, what: &str, uid: Option<&str>) {
    let seen = async || match &pods(&site.plane.kubectl, PODS).await[..] {
        [pod] if pod.ready => Some((pod.uid.clone(), pod.restarts)),
        _ => None,
    };
    let mut last = eventually("the pod is ready", PATIENCE, seen).await;
    let load =
        ApiLoad::start(&[site.plane.api(), site.plane.api()], if uid.is_some() { "same" } else { "other" });
    let gaps = Gaps::measure(Path::new(SOCKET));
    let mut took = Vec::new();
    for turn in 0..upgrades() {
        let so_far = load.calls();
        eventually("load goes on", PATIENCE, async || load.calls() > so_far + 6).await;
        let begun = Instant::now();
        site.node.static_pod(KMS, &manifest(if turn % 2 == 0 { "debug" } else { "info" }, uid));
        last =
            eventually("the new one is ready", PATIENCE, async || seen().await.filter(|seen| *seen != last))
                .await;
        took.push(begun.elapsed());
    }
    let gaps = gaps.stop(upgrades()).await;
    let requests = load.stop().await.requests;
    // It has its seeds.
    requests.assert_nothing_failed();
    let each = |times: &[Duration]| times.iter().map(|time| seconds(*time)).collect::<Vec<_>>().join(", ");
    figure(
        "node: static pod",
        &format!(
            "{} upgrades, {what}: no call on the socket is answered for {}; the API server knows that the new one is ready \
             after {}; of {} requests to kube-apiserver {} failed",
            upgrades(),
            each(&gaps),
            each(&took),
            requests.calls,
            requests.failed,
        ),
    );
}
