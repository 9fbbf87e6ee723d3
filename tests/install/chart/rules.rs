//! Rules for all rendered objects.

use std::path::Path;

use serde_json::Value;

use super::{
    helm::{Helm, sets},
    objects::{container, containers, list, objects, one, pod, text},
    tools::{run, tool},
};
use testkit::command;
use testkit::repository::daemon;
use transit_kms::config::{ParseOptions, parse};

/// The only value sets that mount a Secret.
const WITH_SECRET: [&str; 2] = ["login-secret", "secret"];

#[test]
fn pods_of_every_value_set_follow_the_rules() {
    for set in sets() {
        for object in objects(&Helm::V3.render(&set)) {
            let Some(pod) = pod(&object) else { continue };
            let what = format!("{set}: {}", object["kind"]);
            assert_pod_follows_the_rules(&what, pod);
            let secret = list(&pod["volumes"]).any(|volume| volume.get("secret").is_some());
            let may = WITH_SECRET.contains(&&*set) && object["kind"] == "DaemonSet";
            assert_eq!(secret, may, "{what}");
            let token = pod["automountServiceAccountToken"] == true;
            assert_eq!(
                token,
                object["kind"] == "Job",
                "{what}: only a pod that calls the API server has a token"
            );
        }
    }
}

/// Asserts the rules for a pod of the chart or of `manifests/`.
#[track_caller]
pub(crate) fn assert_pod_follows_the_rules(what: &str, pod: &Value) {
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{what}");
    let volumes: Vec<_> = list(&pod["volumes"]).map(|volume| text(&volume["name"])).collect();
    for container in containers(pod) {
        let what = format!("{what}, container {}", container["name"]);
        // The scheduler never places two pods with the same host port on a node, so an update could not surge.
        assert!(container.get("ports").is_none(), "{what}");
        let context = &container["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false, "{what}");
        assert_eq!(context["capabilities"]["drop"][0], "ALL", "{what}");
        assert!(context["capabilities"].get("add").is_none(), "{what}");
        assert_eq!(context["readOnlyRootFilesystem"], true, "{what}");
        for kind in ["cpu", "memory"] {
            assert!(container["resources"]["requests"].get(kind).is_some(), "{what}: {kind}");
        }
        let mut paths = Vec::new();
        for mount in list(&container["volumeMounts"]) {
            // A container does not see changes of a file that is mounted with subPath.
            assert!(mount.get("subPath").is_none() && mount.get("subPathExpr").is_none(), "{what}");
            assert!(volumes.contains(&text(&mount["name"])), "{what}: {mount}");
            paths.push(text(&mount["mountPath"]));
        }
        let all = paths.len();
        paths.sort_unstable();
        paths.dedup();
        assert_eq!(paths.len(), all, "{what}: {paths:?}");
    }
    if let Some(daemon) = container(pod, "transit-kms") {
        assert_daemon_follows_the_rules(what, pod, daemon);
    }
}

fn assert_daemon_follows_the_rules(what: &str, pod: &Value, daemon: &Value) {
    let arguments: Vec<_> = list(&daemon["args"]).map(text).collect();
    let private = "unix:///run/transit-kms-admin/admin.sock";
    assert!(arguments.contains(&"--takeover"), "{what}");
    assert!(arguments.contains(&&*format!("--admin-listen={private}")), "{what}");
    let command = |probe: &str| -> Vec<_> { list(&daemon[probe]["exec"]["command"]).map(text).collect() };
    assert_eq!(command("livenessProbe"), ["/transit-kms", "probe", "live", "--admin", private], "{what}");
    if daemon.get("readinessProbe").is_some() {
        assert_eq!(
            command("readinessProbe"),
            ["/transit-kms", "probe", "ready", "--admin", private],
            "{what}"
        );
    }
    for probe in ["livenessProbe", "readinessProbe"] {
        // `probe` times out after three seconds, and prints the reason.
        assert!(daemon[probe]["timeoutSeconds"].as_u64().is_none_or(|seconds| seconds > 3), "{what}");
    }
    let grace = arguments.iter().find_map(|argument| argument.strip_prefix("--shutdown-grace=")).unwrap();
    let grace: u64 = grace.trim_end_matches('s').parse().unwrap();
    assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > grace, "{what}");
    let volume = |name: &str| list(&pod["volumes"]).find(|volume| volume["name"] == name).unwrap();
    assert!(volume("admin").get("emptyDir").is_some(), "{what}: the admin socket must be private to the pod");
    let Some(agent) = container(pod, "agent") else { return };
    assert_eq!(agent["restartPolicy"], "Always", "{what}");
    assert_eq!(volume("config")["emptyDir"]["medium"], "Memory", "{what}");
    assert!(volume("config")["emptyDir"].get("sizeLimit").is_some(), "{what}");
    let sees =
        |container: &Value, name: &str| list(&container["volumeMounts"]).any(|mount| mount["name"] == name);
    assert!(
        !sees(daemon, "credentials") && !sees(daemon, "agent"),
        "{what}: only the agent may see its credentials and config"
    );
}

#[test]
fn the_daemon_set_surges_and_runs_on_control_plane_nodes() {
    let rendered = objects(&Helm::V3.render("minimal"));
    let daemon_set = &one(&rendered, "DaemonSet")["spec"];
    let rolling = &daemon_set["updateStrategy"]["rollingUpdate"];
    assert_eq!((rolling["maxSurge"].as_u64(), rolling["maxUnavailable"].as_u64()), (Some(1), Some(0)));
    let pod = &daemon_set["template"]["spec"];
    assert_eq!(pod["tolerations"][0]["operator"], "Exists");
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!((&pod["hostNetwork"], &pod["dnsPolicy"]), (&true.into(), &"Default".into()));
}

/// The selector of a DaemonSet is immutable, and must not match the pod of the uninstall guard.
#[test]
fn no_value_set_changes_the_selector() {
    let wanted = objects(&Helm::V3.render("minimal"));
    let wanted = &one(&wanted, "DaemonSet")["spec"]["selector"]["matchLabels"];
    for set in sets() {
        let rendered = objects(&Helm::V3.render(&set));
        let daemon_set = one(&rendered, "DaemonSet");
        assert_eq!(&daemon_set["spec"]["selector"]["matchLabels"], wanted, "{set}");
        let finds =
            |labels: &Value| wanted.as_object().unwrap().iter().all(|(name, value)| labels[name] == *value);
        assert!(finds(&daemon_set["spec"]["template"]["metadata"]["labels"]), "{set}");
        for job in rendered.iter().filter(|object| object["kind"] == "Job") {
            assert!(!finds(&job["spec"]["template"]["metadata"]["labels"]), "{set}");
        }
    }
}

#[test]
fn a_changed_agent_config_restarts_the_pods() {
    let file = |set: &str| {
        let rendered = Helm::V3.template(&["--values", &super::helm::values("minimal"), set]).stdout();
        let daemon_set = one(&objects(&rendered), "DaemonSet").clone();
        daemon_set["spec"]["template"]["metadata"]["annotations"]["transit-kms/config.yaml.ctmpl"].clone()
    };
    let before = file("--set=log.level=info");
    assert!(before.is_string());
    assert_eq!(file("--set=log.level=debug"), before);
    assert_ne!(file("--set=vault.keyNames={other}"), before);
}

/// Without an agent, the config file of the pod has only paths. Where it reads credentials, only the daemon sees them.
#[test]
fn a_login_of_the_daemon_needs_no_agent_and_mounts_every_path_of_its_config() {
    let mut checked = 0;
    for set in sets().iter().filter(|set| set.starts_with("login-")) {
        let rendered = objects(&Helm::V3.render(set));
        let daemon_set = &one(&rendered, "DaemonSet")["spec"]["template"];
        let config = text(&daemon_set["metadata"]["annotations"]["transit-kms/config.yaml"]);
        let taken = parse(config.as_bytes(), Path::new(set), ParseOptions::default());
        assert!(taken.is_ok(), "{taken:?} of {set}");
        let pod = &daemon_set["spec"];
        assert!(container(pod, "agent").is_none(), "{set}");
        assert_eq!(container(pod, "keygen").is_some(), config.contains("delivery: sealed"), "{set}");
        let mounted: Vec<_> = list(&container(pod, "transit-kms").unwrap()["volumeMounts"])
            .map(|it| text(&it["mountPath"]))
            .collect();
        let words = config.split(|c: char| c.is_whitespace() || "\"[]".contains(c));
        let words = words.map(|word| word.strip_prefix("unix://").unwrap_or(word));
        for path in words.filter(|word| word.starts_with('/')) {
            checked += 1;
            assert!(mounted.iter().any(|it| Path::new(path).starts_with(it)), "{set}: {path} of {mounted:?}");
        }
    }
    assert!(checked > 15, "{checked}");
}

#[test]
fn the_program_has_every_flag_of_the_chart() {
    let help = |arguments: &[&str]| run(command(daemon()).args(arguments).arg("--help")).stdout();
    let (serve, probe, unused) = (help(&["serve"]), help(&["probe"]), help(&["probe", "unused"]));
    let keygen = help(&["keygen"]);
    for set in sets() {
        for object in objects(&Helm::V3.render(&set)) {
            let containers = pod(&object).into_iter().flat_map(containers);
            for container in containers.filter(|container| container["name"] != "agent") {
                let arguments: Vec<_> = list(&container["args"]).map(text).collect();
                let known = match arguments.first() {
                    Some(&"serve") => &serve,
                    Some(&"keygen") => &keygen,
                    Some(&"probe") => &unused,
                    _ => continue,
                };
                for flag in arguments.iter().filter(|argument| argument.starts_with("--")) {
                    let flag = flag.split('=').next().unwrap();
                    assert!(
                        known.contains(&format!("{flag} ")) || known.contains(&format!("{flag}[")),
                        "{set}: {flag}"
                    );
                }
            }
        }
    }
    for word in ["live", "ready", "--admin"] {
        assert!(probe.contains(word), "{word}");
    }
}

#[test]
fn objects_match_the_schemas_of_kubernetes_1_32_to_1_37() {
    let rendered: Vec<_> = sets().iter().map(|set| Helm::V3.render(set)).collect();
    assert_valid_for_every_minor(&rendered.join("\n---\n"));
}

/// Checks all objects except custom resources against the schemas of every supported minor version.
#[track_caller]
pub(crate) fn assert_valid_for_every_minor(yaml: &str) {
    let yaml = super::objects::without_custom(yaml);
    let dir = testkit::temp_dir("valid-");
    let file = dir.path().join("objects.yaml");
    std::fs::write(&file, &yaml).unwrap();
    for minor in 32..=37 {
        let version = format!("1.{minor}");
        let arguments = ["--strict", "-k", &version, file.to_str().unwrap()];
        let ran = tool("venv/bin/kubernetes-validate", arguments);
        let said = format!("{}{}", ran.stdout, ran.stderr);
        let passed = said.matches(&format!(" against version {version}")).count();
        assert!(ran.good && !said.contains("WARN"), "{said}");
        assert_eq!(passed, objects(&yaml).len(), "{said}");
    }
}
