//! What kube-apiserver is told, by the files of `manifests/encryption` and `manifests/kubeadm`: each is loaded by a real
//! one as it is, but for the socket's path.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::manifest;
use testkit::{
    Daemon, DaemonOptions, TestEnv,
    cluster::{
        ApiServer, ApiServerOptions, Cluster, EncryptionConfig, NAME, Provider, READY_WITHIN, SECRETS,
    },
    temp_dir, unix_url,
};

/// A file of `manifests/encryption` with another socket.
fn told(file: &str, socket: &Path) -> EncryptionConfig {
    EncryptionConfig::of_text(placed(&manifest(&format!("encryption/{file}.yaml")), socket))
}

fn placed(text: &str, socket: &Path) -> String {
    assert_eq!(socket.file_name().unwrap(), "kms.sock");
    text.replace("/run/transit-kms", socket.parent().unwrap().to_str().unwrap())
}

/// An API server, and what its Secrets are stored as.
struct Told {
    cluster: Cluster,
    server: ApiServer,
}

impl Told {
    async fn start(config: &EncryptionConfig, options: ApiServerOptions) -> Self {
        let cluster = Cluster::start().await;
        let mut server = cluster.api_server(config, options);
        server.wait_ready(READY_WITHIN).await;
        Self { cluster, server }
    }

    /// Starts the API server anew with another file.
    async fn tell(&mut self, config: &EncryptionConfig) {
        self.server.kill();
        self.server.configure(config);
        self.server.start_again();
        self.server.wait_ready(READY_WITHIN).await;
    }

    /// Writes a new Secret; what it is stored under.
    async fn written(&self, name: &str) -> String {
        self.server.api().create_secret(name, name).await.unwrap();
        self.cluster.etcd.stored(SECRETS, name).await.prefix()
    }

    /// Reads and rewrites all; what each is stored under then.
    async fn rewritten(&self) -> Vec<String> {
        let mut prefixes = Vec::new();
        for (name, value) in self.server.api().secrets().await.unwrap() {
            assert_eq!(value, name);
            self.server.api().rewrite_secret(&name).await.unwrap();
            prefixes.push(self.cluster.etcd.stored(SECRETS, &name).await.prefix());
        }
        prefixes
    }
}

fn ours() -> String {
    format!("k8s:enc:kms:v2:{NAME}:")
}

#[tokio::test]
async fn in_from_nothing_and_from_a_key_of_its_own_and_out_again() {
    let env = TestEnv::start().await;
    let (daemon, _caller) = env.ready([]).await;
    let mut told_now =
        Told::start(&EncryptionConfig::new([Provider::identity()]), ApiServerOptions::default()).await;
    assert_eq!(told_now.written("plain").await, "");

    told_now.tell(&told("from-aescbc-1-read", daemon.socket())).await;
    assert_eq!(told_now.written("own-key").await, "k8s:enc:aescbc:v1:key1:");

    told_now.tell(&told("from-aescbc-2-write", daemon.socket())).await;
    assert_eq!(told_now.written("after").await, ours());

    // One that has not come so far reads it all the same: that is what the first step is for.
    told_now.tell(&told("from-aescbc-1-read", daemon.socket())).await;
    assert_eq!(told_now.server.api().secret("after").await.unwrap(), "after");
    told_now.tell(&told("from-aescbc-2-write", daemon.socket())).await;
    assert_eq!(told_now.rewritten().await, [ours(), ours(), ours()]);

    // Nothing is left but ours, so this, which knows no other, reads it all.
    told_now.tell(&told("new-cluster", daemon.socket())).await;
    assert_eq!(told_now.written("new").await, ours());

    told_now.tell(&told("leaving", daemon.socket())).await;
    assert_eq!(told_now.rewritten().await, [""; 4]);
    told_now.tell(&EncryptionConfig::new([Provider::identity()])).await;
    assert_eq!(told_now.server.api().secrets().await.unwrap().len(), 4);
}

#[tokio::test]
async fn in_from_trousseau() {
    let (env, dir) = (TestEnv::start().await, temp_dir("v1-"));
    let (socket, v1) = (dir.path().join("kms.sock"), dir.path().join("v1@localhost"));
    let arguments = ["--kms-v1-listen", unix_url(&v1).to_str().unwrap(), "--health-check-interval", "1s"]
        .map(str::to_owned);
    let options = DaemonOptions {
        arguments: arguments.into(),
        socket: Some(socket.clone()),
        ..DaemonOptions::default()
    };
    let daemon = Daemon::start_with(&env.config, options).await;
    daemon.wait_ready().await;
    // What is under KMS v1 is of the same form, whoever wrote it: tests/e2e/migration.rs.
    let manifest = manifest("encryption/from-trousseau.yaml");
    let only_v1 =
        manifest.lines().filter(|line| !line.contains("apiVersion: v2")).collect::<Vec<_>>().join("\n");
    let before = EncryptionConfig::of_text(placed(&only_v1, &socket));
    let mut told_now =
        Told::start(&before, ApiServerOptions::arguments(["--feature-gates=KMSv1=true"])).await;
    assert_eq!(told_now.written("old").await, "k8s:enc:kms:v1:vaultprovider:");
    told_now.tell(&told("from-trousseau", &socket)).await;
    assert_eq!(told_now.rewritten().await, [ours()]);
}

/// What a pod of kube-apiserver has of ours.
fn of_pod(pod: &Value) -> Vec<Value> {
    let container = &pod["spec"]["containers"][0];
    let named = |list: &Value| {
        let ours = |it: &&Value| ["encryption", "transit-kms"].iter().any(|name| it["name"] == **name);
        list.as_array().unwrap().iter().filter(ours).cloned().collect::<Vec<_>>()
    };
    let flags = container["command"].as_array().unwrap().iter();
    let flags = flags.filter(|flag| flag.as_str().unwrap().contains("encryption")).cloned().collect();
    [flags, named(&container["volumeMounts"]), named(&pod["spec"]["volumes"])].concat()
}

#[tokio::test]
async fn kubeadms_patch_and_its_configuration_say_the_same() {
    let patch = manifest("kubeadm/patches/kube-apiserver0+json.yaml");
    // The manifest that kubeadm makes, as far as this is about it.
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "kube-apiserver"},
        "spec": {
            "containers": [{
                "name": "kube-apiserver", "image": "kube-apiserver",
                "command": ["kube-apiserver", "--secure-port=6443"],
                "volumeMounts": [{"name": "k8s-certs", "mountPath": "/etc/kubernetes/pki", "readOnly": true}],
            }],
            "volumes": [{"name": "k8s-certs", "hostPath": {"path": "/etc/kubernetes/pki", "type": "DirectoryOrCreate"}}],
        },
    });
    let dir = temp_dir("patch-");
    let file = |name: &str, text: &str| {
        fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name).display().to_string()
    };
    let (pod, patch) = (file("pod.json", &pod.to_string()), file("patch.yaml", &patch));
    let cluster = Cluster::start().await;
    let server = cluster.ready(&EncryptionConfig::new([Provider::identity()])).await;
    let arguments = ["patch", "--local", "--type=json", "--filename", &pod, "--patch-file", &patch];
    let patched = of_pod(&server.kubectl().json(&arguments).await);

    let configured: Value = serde_yaml::from_str(&manifest("kubeadm/cluster-configuration.yaml")).unwrap();
    let configured = &configured["apiServer"];
    let mut expected = Vec::new();
    for argument in configured["extraArgs"].as_array().unwrap() {
        expected.push(json!(format!(
            "--{}={}",
            argument["name"].as_str().unwrap(),
            argument["value"].as_str().unwrap()
        )));
    }
    let volumes = configured["extraVolumes"].as_array().unwrap();
    for volume in volumes {
        expected.push(json!({
            "name": volume["name"], "mountPath": volume["mountPath"], "readOnly": volume["readOnly"],
        }));
    }
    for volume in volumes {
        expected.push(json!({
            "name": volume["name"], "hostPath": {"path": volume["hostPath"], "type": volume["pathType"]},
        }));
    }
    assert_eq!(patched, expected);
}
