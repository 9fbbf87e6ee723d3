//! kubelet and containerd on the simulated machine.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use testkit::{cluster::tool, command, config_file, eventually, process::Process};

use crate::machine::Machine;

/// The name of the node.
pub(crate) const NAME: &str = "node";

const CONTAINERD: &str = "/run/containerd/containerd.sock";
const UP_WITHIN: Duration = Duration::from_secs(30);
/// How much of a log a failing test shows.
const TAIL: usize = 40;

/// The programs of a node. They are killed when it is dropped.
pub(crate) struct Node {
    containerd: Option<Process>,
    kubelet: Option<Process>,
    machine: Machine,
}

impl Node {
    /// Returns a node that is powered off, with only images on its disk.
    pub(crate) async fn new() -> Self {
        let mut node = Self { containerd: None, kubelet: None, machine: Machine::new() };
        node.power_off().await;
        for name in ["containerd", "kubelet", "logs", "manifests"] {
            let folder = node.machine.disk(name);
            // Keep the images, because importing them takes long.
            if name != "containerd" {
                fs::remove_dir_all(&folder).unwrap();
                fs::create_dir(&folder).unwrap();
            }
        }
        node
    }

    /// Starts containerd and then kubelet, as a boot does.
    pub(crate) async fn boot(&mut self) {
        self.start_containerd().await;
        self.start_kubelet();
    }

    /// Kills everything on the node at once. Its disk stays, and `/run` is lost.
    pub(crate) async fn power_off(&mut self) {
        self.machine.power_off().await;
        (self.containerd, self.kubelet) = (None, None);
    }

    /// Returns the path of kubelet's kubeconfig, which must exist before kubelet starts.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.machine.disk("etc").join("kubelet.kubeconfig")
    }

    /// Kills the pod processes that run this program, and returns how many there were.
    pub(crate) fn crash(&self, program: &str) -> usize {
        let found = self.machine.running(program);
        for pid in &found {
            kill_process(*pid, Signal::KILL).unwrap();
        }
        found.len()
    }

    /// Returns a path for a temporary file on the node's disk.
    pub(crate) fn temp_dir(&self, name: &str) -> PathBuf {
        self.machine.disk("new").join(name)
    }

    /// Writes a manifest into kubelet's directory of static pods.
    pub(crate) fn static_pod(&self, name: &str, manifest: &str) {
        // Write it elsewhere and rename it, so that kubelet never sees a partial file.
        let new = self.temp_dir(name);
        fs::write(&new, manifest).unwrap();
        fs::rename(new, self.manifest(name)).unwrap();
    }

    /// Removes a manifest from that directory.
    pub(crate) fn remove_static_pod(&self, name: &str) {
        fs::remove_file(self.manifest(name)).unwrap();
    }

    /// Returns the logs of all containers of the pods of this name or uid.
    pub(crate) fn pod_logs(&self, pod: &str) -> String {
        let mut text = String::new();
        for entry in fs::read_dir(self.machine.disk("logs")).unwrap().flatten() {
            if entry.file_name().to_string_lossy().contains(pod) {
                append_files(&entry.path(), &mut text);
            }
        }
        text
    }

    /// Runs `ctr` in the containerd namespace of kubelet.
    fn ctr(&self, arguments: &[&str]) -> String {
        let ran = command("ctr").args(["-a", CONTAINERD, "-n", "k8s.io"]).args(arguments).output().unwrap();
        assert!(ran.status.success(), "ctr {arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.machine.disk("manifests").join(name).with_extension("yaml")
    }

    async fn start_containerd(&mut self) {
        let root = self.machine.disk("containerd");
        let cni = self.machine.disk("cni");
        // All pods use the host network, but the node is not ready without a CNI config.
        let network = json!({"cniVersion": "0.4.0", "name": "none", "plugins": [{"type": "loopback"}]});
        fs::write(cni.join("none.conflist"), network.to_string()).unwrap();
        let config = self.machine.disk("etc").join("containerd.toml");
        // JSON strings are valid TOML strings.
        let text = format!(
            r#"version = 2
root = {root}
state = "/run/containerd"
[grpc]
address = "{CONTAINERD}"
[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
sandbox_image = "localhost/pause:1"
[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = {cni}
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"#,
            root = json!(root),
            cni = json!(cni),
        );
        fs::write(&config, text).unwrap();
        let mut containerd = self.machine.command(Path::new("containerd"));
        self.containerd = Some(Process::spawn("containerd", containerd.arg("--config").arg(&config)));
        eventually("containerd is up", UP_WITHIN, async || {
            let output = command("ctr").args(["-a", CONTAINERD, "version"]).output().unwrap();
            if output.status.success() { Ok(()) } else { Err(String::from_utf8(output.stderr).unwrap()) }
        })
        .await;
        let images = self.ctr(&["images", "list", "--quiet"]);
        if !images.contains("pause") {
            for archive in self.machine.archives() {
                self.ctr(&["images", "import", archive.to_str().unwrap()]);
            }
        }
    }

    fn start_kubelet(&mut self) {
        let config = self.machine.disk("etc").join("kubelet.json");
        config_file::by_rename(&config, &self.kubelet_config().to_string());
        let mut command = self.machine.command(&tool("kubelet"));
        command
            .arg("--config")
            .arg(config)
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .arg("--root-dir")
            .arg(self.machine.disk("kubelet"))
            .args(["--hostname-override", NAME, "--node-ip", "10.99.0.1"]);
        self.kubelet = Some(Process::spawn("kubelet", &mut command));
    }

    fn kubelet_config(&self) -> Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.machine.group(),
            "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
            "enforceNodeAllocatable": [],
            "failCgroupV1": false,
            "failSwapOn": false,
            // kubelet must not evict pods because other programs fill the host's disk.
            "evictionHard": {"memory.available": "1Mi"},
            "imageGCHighThresholdPercent": 100,
            "localStorageCapacityIsolation": false,
            "makeIPTablesUtilChains": false,
            "oomScoreAdj": 0,
            "podLogsDir": self.machine.disk("logs"),
            "staticPodPath": self.machine.disk("manifests"),
            "volumePluginDir": self.machine.disk("plugins"),
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            print_container_logs(&self.machine.disk("logs"));
        }
    }
}

/// Appends the content of all files below this directory.
fn append_files(below: &Path, text: &mut String) {
    for entry in fs::read_dir(below).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            append_files(&path, text);
        } else {
            *text += &fs::read_to_string(&path).unwrap();
        }
    }
}

/// Prints the last lines of each container's log.
fn print_container_logs(below: &Path) {
    for entry in fs::read_dir(below).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            print_container_logs(&path);
        } else if let Ok(text) = fs::read_to_string(&path) {
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("---- the last of {} lines of {} ----", lines.len(), path.display());
            for line in lines.iter().skip(lines.len().saturating_sub(TAIL)) {
                eprintln!("{line}");
            }
        }
    }
}
