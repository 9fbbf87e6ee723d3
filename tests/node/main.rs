//! Tests on a real node: kubelet, containerd, a control plane, and the chart or the static pod.
//!
//! `scripts/test-node` runs them in their own namespaces. `machine` is the environment that the script makes, `node`
//! runs kubelet and containerd, `control_plane` runs etcd, kube-apiserver and the controllers, and `node_env` combines
//! them with a Vault. `background_load`, `helm` and `pods` are helpers. The other files are scenarios.

#[cfg(test)]
mod background_load;
#[cfg(test)]
mod bad_upgrade;
#[cfg(test)]
mod control_plane;
#[cfg(test)]
mod helm;
#[cfg(test)]
mod login;
#[cfg(test)]
mod machine;
#[cfg(test)]
mod node;
#[cfg(test)]
mod node_env;
#[cfg(test)]
mod pod_restarts;
#[cfg(test)]
mod pods;
#[cfg(test)]
mod reboot;
#[cfg(test)]
mod rollout;
#[cfg(test)]
mod static_pod;
#[cfg(test)]
mod uninstall;
