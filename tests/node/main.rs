//! A real node: kubelet, containerd, a control plane, and what is installed on it.
//!
//! `scripts/test-node` runs it in namespaces of its own.

#[cfg(test)]
#[path = "../support/mod.rs"]
mod support;
