//! The chart with a real API server. Tests with kubelet are in tests/node.

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

/// A control plane without encryption and without nodes.
pub(crate) struct ChartControlPlane {
    // Fields are dropped in this order. The API server comes first, because it logs many errors without etcd.
    server: ApiServer,
    _cluster: Cluster,
    dir: TempDir,
}

impl ChartControlPlane {
    pub(crate) async fn ready() -> Self {
        let cluster = Cluster::start().await;
        let encryption = EncryptionConfig::new([Provider::identity()]);
        let mut server = cluster.api_server(&encryption, ApiServerOptions::default());
        server.wait_ready(READY_WITHIN).await;
        let control_plane = Self { server, _cluster: cluster, dir: temp_dir("chart-") };
        let config = control_plane.kubectl(&["config", "view", "--raw", "--flatten"]).await.stdout();
        fs::write(control_plane.kubeconfig(), config).unwrap();
        control_plane
    }

    /// Runs kubectl as an administrator.
    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Ran {
        let ran = self.server.kubectl().run(arguments).await;
        Ran { good: ran.good, stderr: ran.stderr, stdout: ran.stdout }
    }

    /// Applies these objects in a server-side dry run, and returns their number.
    ///
    /// # Panics
    /// Panics if the API server rejects an object or prints a warning.
    #[track_caller]
    pub(crate) fn dry_run(&self, what: &str, yaml: &str) -> impl Future<Output = usize> {
        let file = self.dir.path().join("objects.yaml");
        fs::write(&file, yaml).unwrap();
        let what = what.to_owned();
        async move {
            let ran = self.kubectl(&["apply", "--dry-run=server", "-f", file.to_str().unwrap()]).await;
            assert!(ran.good && ran.stderr.is_empty(), "{what}: {ran:?}");
            ran.stdout.matches("(server dry run)").count()
        }
    }

    /// Creates a pod with this spec in a dry run, in a new namespace with this level of Pod Security.
    async fn dry_run_pod_at_level(&self, level: &str, spec: &Value) -> Ran {
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

    /// Runs Helm against this API server.
    fn helm(&self, helm: Helm, arguments: &[&str]) -> Ran {
        let kubeconfig = self.kubeconfig();
        helm.run(
            &[&["--kubeconfig", kubeconfig.to_str().unwrap(), "--namespace", NAMESPACE], arguments].concat(),
        )
    }

    /// Returns the names of all objects of the release, and of Helm's Secrets.
    async fn objects_of_release(&self) -> String {
        let kinds =
            "configmaps,daemonsets,jobs,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings";
        let label = format!("app.kubernetes.io/instance={RELEASE}");
        let objects = self.kubectl(&["get", kinds, "-A", "-l", &label, "-o", "name"]).await.stdout();
        objects + &self.kubectl(&["get", "secrets", "-A", "-l", "owner=helm", "-o", "name"]).await.stdout()
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }
}

#[tokio::test]
async fn an_api_server_accepts_every_value_set() {
    let control_plane = ChartControlPlane::ready().await;
    for set in sets() {
        let yaml = without_custom(&Helm::V3.render(&set));
        assert_eq!(control_plane.dry_run(&set, &yaml).await, objects(&yaml).len(), "{set}");
    }
}

/// The notes name the label that a namespace needs, and the error without it.
#[tokio::test]
async fn the_notes_name_the_next_steps_and_the_pod_security_label() {
    let control_plane = ChartControlPlane::ready().await;
    for helm in Helm::BOTH {
        let notes = |namespace: &str, set: &str| {
            let install = ["install", RELEASE, CHART, "--dry-run=server", "--namespace", namespace];
            let said = control_plane
                .helm(helm, &[&install[..], &["--values", &values("minimal"), set]].concat())
                .stdout();
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
    let admitted = control_plane.dry_run_pod_at_level("privileged", spec).await;
    assert!(admitted.good, "{admitted:?}");
    for level in ["baseline", "restricted"] {
        let refused = control_plane.dry_run_pod_at_level(level, spec).await;
        let words = format!("violates PodSecurity \"{level}:latest\": host namespaces (hostNetwork=true)");
        assert!(!refused.good && refused.stderr.contains(&words), "{refused:?}");
        assert!(refused.stderr.contains("hostPath"), "{refused:?}");
    }
}

#[tokio::test]
async fn helm_upgrades_between_all_value_sets_rolls_back_and_uninstalls() {
    let control_plane = ChartControlPlane::ready().await;
    for helm in Helm::BOTH {
        let upgrade = |set: &str| {
            let ran = control_plane.helm(
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
        // `monitored` needs the custom resources of the Prometheus operator.
        for set in sets().iter().filter(|set| *set != "monitored") {
            upgrade(set);
        }
        control_plane.helm(helm, &["rollback", RELEASE, "1"]).stdout();
        let daemon_sets =
            control_plane.kubectl(&["-n", NAMESPACE, "get", "daemonsets", "-o", "name"]).await.stdout();
        assert_eq!(daemon_sets, "daemonset.apps/transit-kms\n");
        assert_ne!(control_plane.objects_of_release().await, "");
        // No controller runs the Job of the uninstall guard here.
        control_plane.helm(helm, &["uninstall", RELEASE, "--no-hooks"]).stdout();
        assert_eq!(control_plane.objects_of_release().await, "");
    }
}

/// Runs the command of the uninstall guard with the guard's own token and permissions.
#[tokio::test]
async fn the_uninstall_guard_may_read_metrics_and_endpointslices_only() {
    let control_plane = ChartControlPlane::ready().await;
    let rendered = Helm::V3.render("minimal");
    let guards: Vec<_> =
        rendered.split("\n---\n").filter(|text| text.contains("helm.sh/hook: pre-delete")).collect();
    let (rights, jobs): (Vec<&str>, Vec<&str>) =
        guards.into_iter().partition(|text| !text.contains("kind: Job"));
    assert_eq!((rights.len(), jobs.len()), (5, 1));
    let (accounts, rest): (Vec<&str>, Vec<&str>) =
        rights.iter().partition(|text| text.contains("kind: ServiceAccount"));
    let apply = async |yaml: &[&str]| {
        let file = control_plane.dir.path().join("rights.yaml");
        fs::write(&file, yaml.join("\n---\n")).unwrap();
        control_plane.kubectl(&["apply", "-f", file.to_str().unwrap()]).await.stdout();
    };
    apply(&accounts).await;
    let guard = "system:serviceaccount:kube-system:transit-kms-unused";
    let token =
        control_plane.kubectl(&["-n", NAMESPACE, "create", "token", "transit-kms-unused"]).await.stdout();
    fs::write(control_plane.dir.path().join("token"), token).unwrap();
    fs::copy(control_plane.server.ca_file(), control_plane.dir.path().join("ca.crt")).unwrap();
    let job = &objects(jobs[0])[0]["spec"]["template"]["spec"];
    let run_guard = |more: &[&str]| {
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
                &control_plane.server.address(),
                "--service-account",
                control_plane.dir.path().to_str().unwrap(),
            ])
            .args(more))
    };
    // An API server on a loopback address is not listed.
    let no_discovery = ["--no-discovery"];

    for (more, says) in
        [(&[][..], "the verb `list` on `endpointslices`"), (&no_discovery, "nonResourceURL /metrics")]
    {
        let refused = run_guard(more);
        assert!(!refused.good && format!("{refused:?}").contains(says), "{refused:?}");
    }
    apply(&rest).await;
    let unlisted = run_guard(&[]);
    assert!(!unlisted.good && format!("{unlisted:?}").contains("the list is empty"), "{unlisted:?}");
    // No plugin is in use, so the guard allows the uninstall.
    let allowed = run_guard(&no_discovery);
    assert!(allowed.good, "{allowed:?}");

    let can = async |arguments: &[&str]| {
        control_plane.kubectl(&[&["auth", "can-i", "--as", guard], arguments].concat()).await.stdout.trim()
            == "yes"
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
