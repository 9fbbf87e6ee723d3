//! Pods as the API server reports them.

use serde_json::Value;
use testkit::cluster::Kubectl;

/// The state of a pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) ready: bool,
    /// The sum over all containers.
    pub(crate) restarts: u64,
    pub(crate) uid: String,
}

/// Returns the pods of `kube-system` that match this label selector.
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
