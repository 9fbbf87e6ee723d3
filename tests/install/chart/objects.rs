//! Kubernetes objects in YAML, and their pod specs.

use std::path::Path;

use serde::Deserialize as _;
use serde_json::Value;

/// The kinds that need a CustomResourceDefinition.
const CUSTOM: [&str; 2] = ["PodMonitor", "PrometheusRule"];

/// Parses all objects of a YAML text.
pub(crate) fn objects(yaml: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(yaml);
    let objects: Vec<Value> = documents.map(|document| Value::deserialize(document).unwrap()).collect();
    assert!(objects.iter().all(Value::is_object), "{yaml}");
    objects
}

/// Parses all objects of a YAML file.
pub(crate) fn objects_in(path: &Path) -> Vec<Value> {
    objects(&std::fs::read_to_string(path).unwrap())
}

/// Returns the text without the custom resources of the Prometheus operator.
pub(crate) fn without_custom(yaml: &str) -> String {
    let kept = |text: &&str| !CUSTOM.iter().any(|kind| text.contains(&format!("\nkind: {kind}\n")));
    yaml.split("\n---\n").filter(kept).collect::<Vec<_>>().join("\n---\n")
}

/// Returns the only object of this kind.
#[track_caller]
pub(crate) fn one<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found: Vec<_> = objects.iter().filter(|object| object["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "{kind}: {found:?}");
    found[0]
}

/// Returns the pod spec of a pod or of an object with a pod template.
pub(crate) fn pod(object: &Value) -> Option<&Value> {
    match object["kind"].as_str() {
        Some("Pod") => Some(&object["spec"]),
        Some("DaemonSet" | "Deployment" | "Job") => Some(&object["spec"]["template"]["spec"]),
        _ => None,
    }
}

/// Returns the elements of a list, or none if it is absent.
pub(crate) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Returns the init containers and containers of a pod.
pub(crate) fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(&pod["initContainers"]).chain(list(&pod["containers"]))
}

/// Returns a container by its name.
pub(crate) fn container<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    containers(pod).find(|container| container["name"] == name)
}

/// Returns a string, or an empty one if the value is no string.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
