//! The daemon contains what it needs beside an API server, and nothing of the operator's program or of tests.

use std::{collections::BTreeSet, env, process::Command};

use testkit::repository;

/// Rights that the daemon must not have, and what only tests need.
const FORBIDDEN: [&str; 8] = [
    "etcd-client",
    "integration-tests",
    "k8s-openapi",
    "kube",
    "kube-client",
    "testkit",
    "transit-kmsctl",
    "openssl",
];

/// The crates of `package` without those of its tests and build scripts, each with its features.
#[expect(clippy::disallowed_methods, reason = "cargo needs the environment of the user")]
fn tree(package: &str) -> BTreeSet<String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["tree", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p} {f}"]);
    let output = command.args(["--package", package]).current_dir(repository::ROOT).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn names(tree: &BTreeSet<String>) -> BTreeSet<&str> {
    tree.iter().filter_map(|line| line.split(' ').next()).collect()
}

#[test]
fn the_daemon_has_no_client_of_kubernetes_or_etcd() {
    let tree = tree("transit-kms");
    let names = names(&tree);
    assert!(names.contains("transit-client") && names.len() > 50, "this is not the tree: {names:?}");
    let found: Vec<_> = FORBIDDEN.iter().filter(|name| names.contains(*name)).collect();
    assert!(found.is_empty(), "cargo tree -p transit-kms -e normal has {found:?}");
}

#[test]
fn the_daemon_has_no_feature_that_only_tests_need() {
    let tree = tree("transit-kms");
    let features = |name: &str| {
        let line = tree.iter().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        line.rsplit(' ').next().unwrap().split(',').map(str::to_owned).collect::<BTreeSet<_>>()
    };
    assert!(!features("tokio").contains("test-util"));
    assert!(!features("transit-client").contains("testing"));
}

#[test]
fn the_shared_crates_know_neither_the_daemon_nor_each_other() {
    const SHARED: [&str; 5] =
        ["aws-identity", "kms-plugin", "sealed-payload", "spiffe-identity", "transit-client"];
    for package in SHARED {
        let tree = tree(package);
        let names = names(&tree);
        assert!(names.contains(package) && !names.contains("transit-kms"), "{package}: {names:?}");
        let others: Vec<_> =
            SHARED.iter().filter(|other| **other != package && names.contains(*other)).collect();
        assert!(others.is_empty(), "{package} depends on {others:?}");
    }
}
