//! The files of `manifests/`: generated from the chart, valid, and safe.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use testkit::{command, temp_dir};
use transit_kms::config::{ParseOptions, parse};

use crate::chart::{
    ChartControlPlane,
    objects::{container, containers, list, objects, one, pod, text},
    rules::{assert_pod_follows_the_rules, assert_valid_for_every_minor},
    tools::{run, tool},
};

const ROOT: &str = testkit::repository::ROOT;
/// The manifests of Kubernetes objects.
const PODS: [&str; 6] = [
    "daemonset",
    "hosted-control-plane",
    "login/static-pod",
    "login/static-pod-sealed",
    "login/static-pod-workload-api",
    "static-pod",
];
/// The static pods without an agent, and the config files that they are for.
const LOGINS: [(&str, &[&str]); 3] = [
    ("login/static-pod", &["approle", "approle-wrapped", "cert", "inline", "jwt", "userpass"]),
    ("login/static-pod-sealed", &["approle-sealed"]),
    ("login/static-pod-workload-api", &["cert-workload-api", "jwt-workload-api"]),
];
/// The config files that need a mount of the operator's own, or none.
const OTHER_LOGINS: [&str; 3] = ["agent", "aws", "token-file"];

#[test]
fn manifests_match_the_output_of_scripts_manifests() {
    let ran = run(command("scripts/manifests").arg("--check"));
    assert!(ran.good, "run scripts/manifests:\n{}{}", ran.stdout, ran.stderr);
}

/// Proves that the test above detects a difference.
#[test]
fn a_manifest_that_was_changed_by_hand_is_detected() {
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
fn helm_4_renders_the_same_manifests() {
    let helm = format!("{ROOT}/target/tools/bin/helm4");
    let ran = run(command("scripts/manifests").arg("--check").env("HELM", helm));
    assert!(ran.good, "{}{}", ran.stdout, ran.stderr);
}

#[test]
fn pods_follow_the_rules() {
    for name in PODS {
        let object = pod_of(name);
        let pod = pod(&object).unwrap();
        assert_pod_follows_the_rules(name, pod);
        assert!(list(&pod["volumes"]).all(|volume| volume.get("secret").is_none()), "{name}");
    }
}

/// kubelet rejects a static pod that refers to API objects.
#[test]
fn the_static_pods_refer_to_no_api_objects() {
    for name in PODS.iter().filter(|name| name.contains("static-pod")) {
        assert_refers_to_no_api_objects(pod(&pod_of(name)).unwrap());
    }
}

#[track_caller]
fn assert_refers_to_no_api_objects(pod: &Value) {
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

/// systemd and the static pod use the same agent files, so the pod must mount all paths in them.
#[test]
fn the_static_pod_mounts_every_path_of_the_agents_files() {
    let object = pod_of("static-pod");
    let pod = pod(&object).unwrap();
    let (agent, daemon) = (container(pod, "agent").unwrap(), container(pod, "transit-kms").unwrap());
    let mut paths = 0;
    for file in ["agent/openbao/approle.hcl", "agent/vault/cert.hcl", "agent/config.yaml.ctmpl"] {
        let text = fs::read_to_string(manifest(file)).unwrap();
        for path in text.split('"').filter(|part| part.starts_with("/")) {
            paths += 1;
            assert!(mounts(agent, path), "{file}: {path}");
        }
    }
    assert!(paths > 8, "{paths}");
    assert!(mounts(daemon, "/etc/transit-kms/ca/ca.pem") && !mounts(daemon, "/etc/transit-kms/secret_id"));
}

#[test]
fn the_static_pods_without_an_agent_mount_every_path_of_their_configs() {
    let mut checked: Vec<_> = OTHER_LOGINS.map(str::to_owned).into();
    for (name, configs) in LOGINS {
        let object = pod_of(name);
        let pod = pod(&object).unwrap();
        assert!(container(pod, "agent").is_none(), "{name}");
        assert_eq!(container(pod, "keygen").is_some(), name.ends_with("sealed"), "{name}");
        let daemon = container(pod, "transit-kms").unwrap();
        for config in configs {
            let text = assert_accepted(&format!("login/{config}.yaml"));
            let words = text.split(|c: char| c.is_whitespace() || c == '"');
            let paths: Vec<_> = words
                .filter_map(|word| {
                    Some(word.strip_prefix("unix://").unwrap_or(word)).filter(|it| it.starts_with('/'))
                })
                .filter(|path| !path.ends_with("config.yaml."))
                .collect();
            assert!(paths.len() > 1, "{config}: {paths:?}");
            for path in paths {
                assert!(mounts(daemon, path), "{name}, {config}: {path}");
            }
            checked.push((*config).to_owned());
        }
    }
    for config in OTHER_LOGINS {
        assert_accepted(&format!("login/{config}.yaml"));
    }
    assert_accepted("systemd/login.yaml");
    let folder = fs::read_dir(manifest("login")).unwrap().map(|it| it.unwrap().path());
    let mut all: Vec<_> = folder.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    all.retain(|name| !name.starts_with("static-pod"));
    all.sort();
    checked.sort();
    assert_eq!(checked, all, "each config is for one of the pods");
}

#[test]
fn the_hosted_control_plane_starts_the_plugin_first_without_a_readiness_probe() {
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
fn objects_match_the_schemas_of_kubernetes_1_32_to_1_37() {
    let texts = PODS.map(|name| fs::read_to_string(manifest(&format!("{name}.yaml"))).unwrap());
    assert_valid_for_every_minor(&texts.join("\n---\n"));
}

#[tokio::test]
async fn an_api_server_accepts_all_manifests() {
    let control_plane = ChartControlPlane::ready().await;
    control_plane.kubectl(&["create", "namespace", "tenant"]).await.stdout();
    // Providers of hosted control planes use the strictest level.
    let label = "pod-security.kubernetes.io/enforce=restricted";
    control_plane.kubectl(&["label", "namespace", "tenant", label]).await.stdout();
    // Mirror pods use this account. No controller creates it here.
    control_plane.kubectl(&["-n", "kube-system", "create", "serviceaccount", "default"]).await.stdout();
    for name in PODS {
        let yaml = fs::read_to_string(manifest(&format!("{name}.yaml"))).unwrap();
        assert_eq!(control_plane.dry_run(name, &yaml).await, objects(&yaml).len(), "{name}");
    }
}

#[test]
fn yamllint_reports_nothing() {
    let config = format!("{ROOT}/tests/install/chart/yamllint.yaml");
    let files = PODS.map(|name| manifest(&format!("{name}.yaml")).display().to_string());
    tool(
        "venv/bin/yamllint",
        ["--strict", "-c", &config].into_iter().chain(files.iter().map(String::as_str)),
    )
    .stdout();
}

/// Asserts that the daemon accepts a config file of `manifests/`, and returns its text.
#[track_caller]
fn assert_accepted(name: &str) -> String {
    let text = fs::read_to_string(manifest(name)).unwrap();
    let taken = parse(text.as_bytes(), &manifest(name), ParseOptions::default());
    assert!(taken.is_ok(), "{taken:?} of {name}");
    text
}

/// Returns whether a path is below a volume mount of this container.
fn mounts(container: &Value, path: &str) -> bool {
    list(&container["volumeMounts"]).any(|mount| Path::new(path).starts_with(text(&mount["mountPath"])))
}

/// Returns the object of a manifest that is a pod or has a pod template.
fn pod_of(name: &str) -> Value {
    let all = objects(&fs::read_to_string(manifest(&format!("{name}.yaml"))).unwrap());
    let kind = match name {
        name if name.contains("static-pod") => "Pod",
        "daemonset" => "DaemonSet",
        _ => "Deployment",
    };
    one(&all, kind).clone()
}

fn manifest(name: &str) -> PathBuf {
    Path::new(ROOT).join("manifests").join(name)
}
