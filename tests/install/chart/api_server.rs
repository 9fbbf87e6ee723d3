//! What a real API server makes of the chart. There is no kubelet here: see tests/node.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    CHART,
    helm::{Helm, NAMESPACE, RELEASE, sets, values},
    objects::{objects, one, without_custom},
    tools::{Ran, run},
};
use testkit::{
    cluster::{ApiServer, ApiServerOptions, Cluster, EncryptionConfig, Provider, READY_WITHIN},
    command,
    repository::daemon,
    temp_dir,
};

/// A control plane that encrypts nothing and runs nothing.
pub(crate) struct ControlPlane {
    // In this order they go: an API server that outlives its etcd says so at length.
    server: ApiServer,
    _cluster: Cluster,
    dir: TempDir,
}

impl ControlPlane {
    pub(crate) async fn ready() -> Self {
        let cluster = Cluster::start().await;
        let encryption = EncryptionConfig::new([Provider::identity()]);
        let mut server = cluster.api_server(&encryption, ApiServerOptions::default());
        server.wait_ready(READY_WITHIN).await;
        let plane = Self { server, _cluster: cluster, dir: temp_dir("plane-") };
        let config = plane.kubectl(&["config", "view", "--raw", "--flatten"]).await.stdout();
        fs::write(plane.kubeconfig(), config).unwrap();
        plane
    }

    /// Runs kubectl as an administrator.
    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Ran {
        let ran = self.server.kubectl().run(arguments).await;
        Ran { good: ran.good, stderr: ran.stderr, stdout: ran.stdout }
    }

    /// Has these objects taken as they would be, without their being made; answers how many.
    ///
    /// # Panics
    /// If one is refused, or taken with a warning.
    #[track_caller]
    pub(crate) fn takes(&self, what: &str, yaml: &str) -> impl Future<Output = usize> {
        let file = self.dir.path().join("objects.yaml");
        fs::write(&file, yaml).unwrap();
        let what = what.to_owned();
        async move {
            let ran = self.kubectl(&["apply", "--dry-run=server", "-f", file.to_str().unwrap()]).await;
            assert!(ran.good && ran.stderr.is_empty(), "{what}: {ran:?}");
            ran.stdout.matches("(server dry run)").count()
        }
    }

    /// Creates, without making it, a pod of this spec in a new namespace with this level of Pod Security.
    async fn pod_at(&self, level: &str, spec: &Value) -> Ran {
        let label = format!("pod-security.kubernetes.io/enforce={level}");
        self.kubectl(&["create", "namespace", level]).await.stdout();
        self.kubectl(&["label", "namespace", level, &label]).await.stdout();
        self.kubectl(&["-n", level, "create", "serviceaccount", "transit-kms"]).await.stdout();
        let metadata = json!({"name": "pod", "namespace": level});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
        let file = self.dir.path().join("pod.json");
        fs::write(&file, pod.to_string()).unwrap();
        self.kubectl(&["create", "--dry-run=server", "-f", file.to_str().unwrap()]).await
    }

    /// Runs Helm against it.
    fn helm(&self, helm: Helm, arguments: &[&str]) -> Ran {
        let kubeconfig = self.kubeconfig();
        helm.run(
            &[&["--kubeconfig", kubeconfig.to_str().unwrap(), "--namespace", NAMESPACE], arguments].concat(),
        )
    }

    /// What there is of the release, or is labelled as its.
    async fn left(&self) -> String {
        let kinds =
            "configmaps,daemonsets,jobs,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings";
        let label = format!("app.kubernetes.io/instance={RELEASE}");
        let ours = self.kubectl(&["get", kinds, "-A", "-l", &label, "-o", "name"]).await.stdout();
        ours + &self.kubectl(&["get", "secrets", "-A", "-l", "owner=helm", "-o", "name"]).await.stdout()
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }
}

#[tokio::test]
async fn the_api_server_takes_every_value_set() {
    let plane = ControlPlane::ready().await;
    for set in sets() {
        let yaml = without_custom(&Helm::V3.render(&set));
        assert_eq!(plane.takes(&set, &yaml).await, objects(&yaml).len(), "{set}");
    }
}

/// What is printed after an install names the label that a namespace needs, and what is seen without it.
#[tokio::test]
async fn the_notes_say_what_comes_next_and_what_pod_security_wants() {
    let plane = ControlPlane::ready().await;
    for helm in Helm::BOTH {
        let notes = |namespace: &str, set: &str| {
            let install = ["install", RELEASE, CHART, "--dry-run=server", "--namespace", namespace];
            let said =
                plane.helm(helm, &[&install[..], &["--values", &values("minimal"), set]].concat()).stdout();
            said.split_once("NOTES:").unwrap().1.to_owned()
        };
        let plain = notes(NAMESPACE, "--set=log.level=info");
        for words in [
            "kubectl -n kube-system rollout status daemonset/transit-kms",
            "kubectl -n kube-system exec daemonset/transit-kms -- /transit-kms probe roundtrip",
            "unix:///run/transit-kms/kms.sock",
            "kubectl get secrets -A -o json | kubectl replace -f -",
            "kubectl -n kube-system logs job/transit-kms-unused",
        ] {
            assert!(plain.contains(words), "{words}: {plain}");
        }
        assert!(!plain.contains("pod-security"), "{plain}");
        let elsewhere = notes("elsewhere", "--set=uninstallGuard.enabled=false");
        let label =
            "kubectl label namespace elsewhere pod-security.kubernetes.io/enforce=privileged --overwrite";
        assert!(elsewhere.contains(label) && elsewhere.contains("violates PodSecurity"), "{elsewhere}");
        assert!(!elsewhere.contains("logs job/"), "{elsewhere}");
    }
    let rendered = objects(&Helm::V3.render("minimal"));
    let spec = &one(&rendered, "DaemonSet")["spec"]["template"]["spec"];
    let admitted = plane.pod_at("privileged", spec).await;
    assert!(admitted.good, "{admitted:?}");
    for level in ["baseline", "restricted"] {
        let refused = plane.pod_at(level, spec).await;
        let words = format!("violates PodSecurity \"{level}:latest\": host namespaces (hostNetwork=true)");
        assert!(!refused.good && refused.stderr.contains(&words), "{refused:?}");
        assert!(refused.stderr.contains("hostPath"), "{refused:?}");
    }
}

#[tokio::test]
async fn helm_goes_from_any_value_set_to_the_next_and_back() {
    let plane = ControlPlane::ready().await;
    for helm in Helm::BOTH {
        let upgrade = |set: &str| {
            let ran = plane.helm(
                helm,
                &[
                    "upgrade",
                    "--install",
                    RELEASE,
                    CHART,
                    "--reset-values",
                    "--history-max=0",
                    "-f",
                    &values(set),
                ],
            );
            assert!(ran.good, "{helm:?}, to {set}: {}", ran.stderr);
        };
        upgrade("minimal");
        // Not that of Prometheus's operator, which is not here.
        for set in sets().iter().filter(|set| *set != "monitored") {
            upgrade(set);
        }
        plane.helm(helm, &["rollback", RELEASE, "1"]).stdout();
        let daemon_sets = plane.kubectl(&["-n", NAMESPACE, "get", "daemonsets", "-o", "name"]).await.stdout();
        assert_eq!(daemon_sets, "daemonset.apps/transit-kms\n");
        assert_ne!(plane.left().await, "");
        // There is nobody here who would run the guard.
        plane.helm(helm, &["uninstall", RELEASE, "--no-hooks"]).stdout();
        assert_eq!(plane.left().await, "");
    }
}

/// What the guard runs, with its own token, on its own rights.
#[tokio::test]
async fn the_guard_may_look_at_metrics_and_api_servers_and_no_more() {
    let plane = ControlPlane::ready().await;
    let rendered = Helm::V3.render("minimal");
    let guards: Vec<_> =
        rendered.split("\n---\n").filter(|text| text.contains("helm.sh/hook: pre-delete")).collect();
    let (rights, jobs): (Vec<&str>, Vec<&str>) =
        guards.into_iter().partition(|text| !text.contains("kind: Job"));
    assert_eq!((rights.len(), jobs.len()), (5, 1));
    let (accounts, rest): (Vec<&str>, Vec<&str>) =
        rights.iter().partition(|text| text.contains("kind: ServiceAccount"));
    let apply = async |yaml: &[&str]| {
        let file = plane.dir.path().join("rights.yaml");
        fs::write(&file, yaml.join("\n---\n")).unwrap();
        plane.kubectl(&["apply", "-f", file.to_str().unwrap()]).await.stdout();
    };
    apply(&accounts).await;
    let guard = "system:serviceaccount:kube-system:transit-kms-unused";
    let token = plane.kubectl(&["-n", NAMESPACE, "create", "token", "transit-kms-unused"]).await.stdout();
    fs::write(plane.dir.path().join("token"), token).unwrap();
    fs::copy(plane.server.ca_file(), plane.dir.path().join("ca.crt")).unwrap();
    let job = &objects(jobs[0])[0]["spec"]["template"]["spec"];
    let asked = |more: &[&str]| {
        run(command(daemon())
            .args(
                job["containers"][0]["args"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|argument| argument.as_str().unwrap()),
            )
            .args([
                "--api-server",
                &plane.server.address(),
                "--service-account",
                plane.dir.path().to_str().unwrap(),
            ])
            .args(more))
    };
    // An API server on the loopback is in no list.
    let alone = ["--no-discovery"];

    for (more, says) in
        [(&[][..], "the verb `list` on `endpointslices`"), (&alone, "nonResourceURL /metrics")]
    {
        let refused = asked(more);
        assert!(!refused.good && format!("{refused:?}").contains(says), "{refused:?}");
    }
    apply(&rest).await;
    let unlisted = asked(&[]);
    assert!(!unlisted.good && format!("{unlisted:?}").contains("the list is empty"), "{unlisted:?}");
    // No plugin is used here, so the guard has nothing against it.
    let free = asked(&alone);
    assert!(free.good, "{free:?}");

    let can = async |arguments: &[&str]| {
        plane.kubectl(&[&["auth", "can-i", "--as", guard], arguments].concat()).await.stdout.trim() == "yes"
    };
    assert!(can(&["list", "endpointslices.discovery.k8s.io", "-n", "default"]).await);
    for beyond in [
        ["watch", "endpointslices.discovery.k8s.io", "-n", "default"],
        ["list", "endpointslices.discovery.k8s.io", "-n", "kube-system"],
        ["get", "secrets", "-n", "kube-system"],
        ["get", "nodes", "-n", "default"],
    ] {
        assert!(!can(&beyond).await, "{beyond:?}");
    }
}
