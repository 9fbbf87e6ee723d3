//! Kubernetes objects in YAML, and the pods in them.

use std::path::Path;

use serde::Deserialize as _;
use serde_json::Value;

/// The kinds that need a CustomResourceDefinition.
const CUSTOM: [&str; 2] = ["PodMonitor", "PrometheusRule"];

/// Every object of a text.
pub(crate) fn objects(yaml: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(yaml);
    let objects: Vec<Value> = documents.map(|document| Value::deserialize(document).unwrap()).collect();
    assert!(objects.iter().all(Value::is_object), "{yaml}");
    objects
}

/// Every object of a file.
pub(crate) fn objects_in(path: &Path) -> Vec<Value> {
    objects(&std::fs::read_to_string(path).unwrap())
}

/// The text without the objects that only Prometheus's operator knows.
pub(crate) fn without_custom(yaml: &str) -> String {
    let kept = |text: &&str| !CUSTOM.iter().any(|kind| text.contains(&format!("\nkind: {kind}\n")));
    yaml.split("\n---\n").filter(kept).collect::<Vec<_>>().join("\n---\n")
}

/// The one object of this kind.
#[track_caller]
pub(crate) fn one<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found: Vec<_> = objects.iter().filter(|object| object["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "{kind}: {found:?}");
    found[0]
}

/// The spec of the pod that an object is or makes.
pub(crate) fn pod(object: &Value) -> Option<&Value> {
    match object["kind"].as_str() {
        Some("Pod") => Some(&object["spec"]),
        Some("DaemonSet" | "Deployment" | "Job") => Some(&object["spec"]["template"]["spec"]),
        _ => None,
    }
}

/// The elements of a list; none if it is not there.
pub(crate) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The containers of a pod, those that come first included.
pub(crate) fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(&pod["initContainers"]).chain(list(&pod["containers"]))
}

/// A container by its name.
pub(crate) fn container<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    containers(pod).find(|container| container["name"] == name)
}

/// A string, or nothing.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
