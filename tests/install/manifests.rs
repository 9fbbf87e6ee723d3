//! What `manifests/` holds is what its sources say.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use testkit::{command, temp_dir};

use crate::chart::{
    ControlPlane,
    objects::{container, containers, list, objects, one, pod, text},
    rules::{keeps_the_rules, valid_for_every_minor},
    tools::{run, tool},
};

const ROOT: &str = testkit::repository::ROOT;
/// Those that are Kubernetes objects.
const PODS: [&str; 3] = ["daemonset", "hosted-control-plane", "static-pod"];

#[test]
fn manifests_are_what_their_sources_say() {
    let ran = run(command("scripts/manifests").arg("--check"));
    assert!(ran.good, "run scripts/manifests:\n{}{}", ran.stdout, ran.stderr);
}

/// The test above would be worth nothing if it did not see a difference.
#[test]
fn a_manifest_that_was_changed_by_hand_is_shown() {
    let copy = temp_dir("manifests-");
    for folder in ["charts", "manifests", "scripts"] {
        run(command("cp").arg("-r").arg(format!("{ROOT}/{folder}")).arg(copy.path())).stdout();
    }
    let changed = copy.path().join("manifests/static-pod.yaml");
    let text = fs::read_to_string(&changed).unwrap();
    fs::write(&changed, text.replace("drop: [ALL]", "drop: []")).unwrap();
    let helm = format!("{ROOT}/target/tools/bin/helm3");
    let ran = run(command(copy.path().join("scripts/manifests")).arg("--check").env("HELM", helm));
    assert!(!ran.good && ran.stdout.contains("+        capabilities: {drop: [ALL]}"), "{ran:?}");
}

#[test]
fn both_helms_render_the_same_manifests() {
    let helm = format!("{ROOT}/target/tools/bin/helm4");
    let ran = run(command("scripts/manifests").arg("--check").env("HELM", helm));
    assert!(ran.good, "{}{}", ran.stdout, ran.stderr);
}

#[test]
fn pods_keep_the_rules() {
    for name in PODS {
        let object = pod_of(name);
        let pod = pod(&object).unwrap();
        keeps_the_rules(name, pod);
        assert!(list(&pod["volumes"]).all(|volume| volume.get("secret").is_none()), "{name}");
    }
}

/// kubelet refuses a static pod that names anything of the API.
#[test]
fn the_static_pod_needs_nothing_of_the_cluster() {
    let object = pod_of("static-pod");
    let pod = pod(&object).unwrap();
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert!(pod.get("serviceAccountName").is_none());
    for volume in list(&pod["volumes"]) {
        assert!(volume.get("hostPath").is_some() || volume.get("emptyDir").is_some(), "{volume}");
    }
    for variable in containers(pod).flat_map(|container| list(&container["env"])) {
        assert!(
            variable.get("value").is_some() || variable["valueFrom"].get("fieldRef").is_some(),
            "{variable}"
        );
    }
    assert_eq!(pod["priority"], 2_000_001_000);
}

/// The agent's files are for systemd and for the static pod alike, so its pod must see what they name.
#[test]
fn the_static_pod_sees_every_file_that_the_agents_files_name() {
    let object = pod_of("static-pod");
    let pod = pod(&object).unwrap();
    let (agent, daemon) = (container(pod, "agent").unwrap(), container(pod, "transit-kms").unwrap());
    let mut seen = 0;
    for file in ["agent/openbao/approle.hcl", "agent/vault/cert.hcl", "agent/config.yaml.ctmpl"] {
        let text = fs::read_to_string(manifest(file)).unwrap();
        for path in text.split('"').filter(|part| part.starts_with("/")) {
            seen += 1;
            assert!(sees(agent, path), "{file}: {path}");
        }
    }
    assert!(seen > 8, "{seen}");
    assert!(sees(daemon, "/etc/transit-kms/ca/ca.pem") && !sees(daemon, "/etc/transit-kms/secret_id"));
}

#[test]
fn the_hosted_control_plane_starts_the_plugin_first_and_is_not_unready_with_it() {
    let object = pod_of("hosted-control-plane");
    let pod = pod(&object).unwrap();
    let first: Vec<_> = list(&pod["initContainers"]).collect();
    assert_eq!(
        first.iter().map(|container| text(&container["name"])).collect::<Vec<_>>(),
        ["agent", "transit-kms"]
    );
    assert!(first.iter().all(|container| container["restartPolicy"] == "Always"));
    assert!(first.iter().all(|container| container.get("readinessProbe").is_none()));
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
}

#[test]
fn objects_are_what_kubernetes_1_32_to_1_37_know() {
    let texts = PODS.map(|name| fs::read_to_string(manifest(&format!("{name}.yaml"))).unwrap());
    valid_for_every_minor(&texts.join("\n---\n"));
}

#[tokio::test]
async fn the_api_server_takes_them() {
    let plane = ControlPlane::ready().await;
    plane.kubectl(&["create", "namespace", "tenant"]).await.stdout();
    // The strictest level: who keeps control planes of others will have it.
    let label = "pod-security.kubernetes.io/enforce=restricted";
    plane.kubectl(&["label", "namespace", "tenant", label]).await.stdout();
    // What a controller would make: kubelet's copies of static pods are of this account.
    plane.kubectl(&["-n", "kube-system", "create", "serviceaccount", "default"]).await.stdout();
    for name in PODS {
        let yaml = fs::read_to_string(manifest(&format!("{name}.yaml"))).unwrap();
        assert_eq!(plane.takes(name, &yaml).await, objects(&yaml).len(), "{name}");
    }
}

#[test]
fn yamllint_has_nothing_to_say() {
    let config = format!("{ROOT}/tests/install/chart/yamllint.yaml");
    let files = PODS.map(|name| manifest(&format!("{name}.yaml")).display().to_string());
    tool(
        "venv/bin/yamllint",
        ["--strict", "-c", &config].into_iter().chain(files.iter().map(String::as_str)),
    )
    .stdout();
}

/// Whether a path is on a volume that this container has.
fn sees(container: &Value, path: &str) -> bool {
    list(&container["volumeMounts"]).any(|mount| Path::new(path).starts_with(text(&mount["mountPath"])))
}

/// The object of a manifest that is or makes a pod.
fn pod_of(name: &str) -> Value {
    let all = objects(&fs::read_to_string(manifest(&format!("{name}.yaml"))).unwrap());
    let kind = match name {
        "static-pod" => "Pod",
        "daemonset" => "DaemonSet",
        _ => "Deployment",
    };
    one(&all, kind).clone()
}

fn manifest(name: &str) -> PathBuf {
    Path::new(ROOT).join("manifests").join(name)
}
