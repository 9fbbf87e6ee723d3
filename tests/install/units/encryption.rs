//! The files of `manifests/encryption` and `manifests/kubeadm`. A real kube-apiserver loads each of them; only the path
//! of the socket is changed.

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

/// Returns a file of `manifests/encryption` with another socket.
fn config_of(file: &str, socket: &Path) -> EncryptionConfig {
    EncryptionConfig::of_text(with_socket(&manifest(&format!("encryption/{file}.yaml")), socket))
}

fn with_socket(text: &str, socket: &Path) -> String {
    assert_eq!(socket.file_name().unwrap(), "kms.sock");
    text.replace("/run/transit-kms", socket.parent().unwrap().to_str().unwrap())
}

/// An API server and its etcd.
struct TestedServer {
    cluster: Cluster,
    server: ApiServer,
}

impl TestedServer {
    async fn start(config: &EncryptionConfig, options: ApiServerOptions) -> Self {
        let cluster = Cluster::start().await;
        let mut server = cluster.api_server(config, options);
        server.wait_ready(READY_WITHIN).await;
        Self { cluster, server }
    }

    /// Restarts the API server with another configuration.
    async fn restart_with(&mut self, config: &EncryptionConfig) {
        self.server.kill();
        self.server.configure(config);
        self.server.start_again();
        self.server.wait_ready(READY_WITHIN).await;
    }

    /// Writes a new Secret and returns its prefix in etcd.
    async fn write(&self, name: &str) -> String {
        self.server.api().create_secret(name, name).await.unwrap();
        self.cluster.etcd.stored(SECRETS, name).await.prefix()
    }

    /// Reads and rewrites all Secrets, and returns their new prefixes in etcd.
    async fn rewrite_all(&self) -> Vec<String> {
        let mut prefixes = Vec::new();
        for (name, value) in self.server.api().secrets().await.unwrap() {
            assert_eq!(value, name);
            self.server.api().rewrite_secret(&name).await.unwrap();
            prefixes.push(self.cluster.etcd.stored(SECRETS, &name).await.prefix());
        }
        prefixes
    }
}

fn transit_kms_prefix() -> String {
    format!("k8s:enc:kms:v2:{NAME}:")
}

#[tokio::test]
async fn the_configs_migrate_from_no_encryption_and_aescbc_to_transit_kms_and_back() {
    let env = TestEnv::start().await;
    let (daemon, _caller) = env.ready([]).await;
    let mut tested =
        TestedServer::start(&EncryptionConfig::new([Provider::identity()]), ApiServerOptions::default())
            .await;
    assert_eq!(tested.write("plain").await, "");

    tested.restart_with(&config_of("from-aescbc-1-read", daemon.socket())).await;
    assert_eq!(tested.write("own-key").await, "k8s:enc:aescbc:v1:key1:");

    tested.restart_with(&config_of("from-aescbc-2-write", daemon.socket())).await;
    assert_eq!(tested.write("after").await, transit_kms_prefix());

    // An API server that is still at the first step can read it, so that several API servers can migrate one by one.
    tested.restart_with(&config_of("from-aescbc-1-read", daemon.socket())).await;
    assert_eq!(tested.server.api().secret("after").await.unwrap(), "after");
    tested.restart_with(&config_of("from-aescbc-2-write", daemon.socket())).await;
    assert_eq!(
        tested.rewrite_all().await,
        [transit_kms_prefix(), transit_kms_prefix(), transit_kms_prefix()]
    );

    // Everything is encrypted with transit-kms, so a configuration with no other provider reads everything.
    tested.restart_with(&config_of("new-cluster", daemon.socket())).await;
    assert_eq!(tested.write("new").await, transit_kms_prefix());

    tested.restart_with(&config_of("leaving", daemon.socket())).await;
    assert_eq!(tested.rewrite_all().await, [""; 4]);
    tested.restart_with(&EncryptionConfig::new([Provider::identity()])).await;
    assert_eq!(tested.server.api().secrets().await.unwrap().len(), 4);
}

#[tokio::test]
async fn the_config_migrates_from_trousseau() {
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
    // Values of transit-kms in KMS v1 have the same format as Trousseau's: see tests/e2e/migration.rs.
    let manifest = manifest("encryption/from-trousseau.yaml");
    let only_v1 =
        manifest.lines().filter(|line| !line.contains("apiVersion: v2")).collect::<Vec<_>>().join("\n");
    let before = EncryptionConfig::of_text(with_socket(&only_v1, &socket));
    let mut tested =
        TestedServer::start(&before, ApiServerOptions::arguments(["--feature-gates=KMSv1=true"])).await;
    assert_eq!(tested.write("old").await, "k8s:enc:kms:v1:vaultprovider:");
    tested.restart_with(&config_of("from-trousseau", &socket)).await;
    assert_eq!(tested.rewrite_all().await, [transit_kms_prefix()]);
}

/// Returns the flags, mounts and volumes of a kube-apiserver pod that are about encryption and transit-kms.
fn encryption_parts(pod: &Value) -> Vec<Value> {
    let container = &pod["spec"]["containers"][0];
    let named = |list: &Value| {
        let relevant = |it: &&Value| ["encryption", "transit-kms"].iter().any(|name| it["name"] == **name);
        list.as_array().unwrap().iter().filter(relevant).cloned().collect::<Vec<_>>()
    };
    let flags = container["command"].as_array().unwrap().iter();
    let flags = flags.filter(|flag| flag.as_str().unwrap().contains("encryption")).cloned().collect();
    [flags, named(&container["volumeMounts"]), named(&pod["spec"]["volumes"])].concat()
}

#[tokio::test]
async fn the_patch_and_the_configuration_of_kubeadm_have_the_same_effect() {
    let patch = manifest("kubeadm/patches/kube-apiserver0+json.yaml");
    // The relevant part of kubeadm's manifest.
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
    let patched = encryption_parts(&server.kubectl().json(&arguments).await);

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
