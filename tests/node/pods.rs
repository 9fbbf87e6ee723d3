//! What the API server says of pods.

use serde_json::Value;
use testkit::cluster::Kubectl;

/// A pod that is there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) ready: bool,
    /// Of all its containers.
    pub(crate) restarts: u64,
    pub(crate) uid: String,
}

/// The pods of `kube-system` with these labels.
pub(crate) async fn pods(kubectl: &Kubectl, selector: &str) -> Vec<Pod> {
    let list = kubectl.json(&["get", "pods", "-n", "kube-system", "-l", selector]).await;
    list["items"].as_array().unwrap().iter().map(Pod::of).collect()
}

impl Pod {
    fn of(pod: &Value) -> Self {
        let of_containers = |key: &str| {
            let found = pod["status"][key].as_array().cloned().unwrap_or_default();
            found.into_iter().map(|one| one["restartCount"].as_u64().unwrap_or_default()).sum::<u64>()
        };
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let text = |key: &str| pod["metadata"][key].as_str().unwrap().to_owned();
        Self {
            name: text("name"),
            ready: conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"),
            restarts: of_containers("containerStatuses") + of_containers("initContainerStatuses"),
            uid: text("uid"),
        }
    }
}
