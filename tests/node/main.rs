//! A real node: kubelet, containerd, a control plane, and what is installed on it.
//!
//! `scripts/test-node` runs it in namespaces of its own. `machine` is what that script has made, `node`
//! what runs on it, `plane` the control plane; the other files are scenarios.

#[cfg(test)]
mod background_load;
#[cfg(test)]
mod bad_upgrade;
#[cfg(test)]
mod control_plane;
#[cfg(test)]
mod helm;
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
