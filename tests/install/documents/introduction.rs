//! Runs the commands of docs/auth/trusted-introduction.md against a real server, as written.

use std::{fs, os::unix::fs::symlink, path::Path};

use serde_json::json;
use testkit::{Bao, command, repository, temp_dir};

use super::{blocks, root};

const PAGE: &str = "docs/auth/trusted-introduction.md";

#[tokio::test]
async fn a_node_is_introduced_as_written() {
    let (bao, dir) = (Bao::start().await, temp_dir("introduction-"));
    bao.api("POST", "transit/keys/kms-east", json!({})).await;
    for (name, target) in [
        ("manifests", root().join("manifests")),
        ("transit-kms", Path::new(repository::daemon()).to_owned()),
        ("transit-kmsctl", Path::new(repository::kmsctl()).to_owned()),
        ("vault", Bao::program().to_owned()),
    ] {
        symlink(target, dir.path().join(name)).unwrap();
    }
    let page = blocks(&fs::read_to_string(root().join(PAGE)).unwrap());
    let shell: Vec<_> =
        page.iter().filter(|block| block.info == "sh").map(|block| block.text.as_str()).collect();
    let open = "openssl cms -decrypt -inform PEM -in sealed_secret_id -inkey node-key.pem";
    let login = "vault write -field=token_policies auth/approle/login role_id=@role_id secret_id=-";
    let script = shell
        .join("\n")
        // The sealed payload is opened as soon as it exists, because it is destroyed later.
        .replace("\ntransit-kmsctl secret-id list --role $ROLE\n", &format!("\n{open} | {login}; echo\n$&"))
        .replace("$&", "transit-kmsctl secret-id list --role $ROLE\n")
        .replace("transit-kms keygen", "transit-kms keygen --out node-key.pem");
    let script = format!("set -eux\n{script}\n{open} | {login}\n");
    assert_eq!(script.matches(open).count(), 2, "{script}");

    let mut bash = command("bash");
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    bash.args(["-c", &script]).current_dir(dir.path()).env("PATH", path).env("HOME", dir.path());
    bash.env("VAULT_ADDR", bao.address()).env("VAULT_CACERT", bao.ca_file());
    bash.env("VAULT_TOKEN", bao.root_token());
    let output = tokio::process::Command::from(bash).output().await.unwrap();
    let (said, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{log}");
    // The payload of transit-kmsctl and the one of openssl lead to a login.
    assert_eq!(said.matches("[transit-kms-east]").count(), 2, "{said}\n{log}");
    assert_eq!(said.matches("destroyed ").count(), 4, "{said}\n{log}");
}
