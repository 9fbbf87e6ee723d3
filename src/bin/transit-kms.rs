//! The daemon that stands between kube-apiserver and a Transit key.

fn main() {}
