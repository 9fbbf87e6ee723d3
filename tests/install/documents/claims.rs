//! Flags, metrics, messages, YAML and commands in the documents match the program.

use std::{collections::BTreeSet, fs, os::unix::fs::symlink, path::Path};

use serde_json::Value;
use testkit::{Bao, command, temp_dir};
use transit_kms::config::{ParseOptions, parse};

use super::{Document, assert_none, blocks, helps, root, walk};

/// Flags of other programs that appear alone in a code span.
const FOREIGN: [&str; 13] = [
    // kube-apiserver
    "--encryption-provider-config",
    "--encryption-provider-config-automatic-reload",
    "--feature-gates",
    "--v",
    // scripts/quickstart, scripts/image
    "--once",
    "--check",
    // Helm, kube-rbac-proxy
    "--allow-paths",
    "--no-hooks",
    "--set-file",
    "--upstream",
    // k3s, kubectl
    "--secrets-encryption",
    "--server",
    "--to-revision",
];
#[tokio::test]
async fn flags_exist() {
    let known = flags().await;
    let mut unknown = Vec::new();
    for document in Document::all() {
        let lines = document.blocks.iter().flat_map(|block| block.text.lines().map(str::to_owned));
        let commands = lines.chain(document.spans()).filter_map(|line| program_arguments(&line));
        let spans = document.spans().into_iter().filter(|span| span.starts_with("--"));
        for flag in commands.chain(spans).flat_map(|text| flags_in(&text)) {
            if !known.contains(&flag) && !FOREIGN.contains(&flag.as_str()) {
                unknown.push(format!("{}: {flag}", document.path.display()));
            }
        }
    }
    assert_none("are not flags of transit-kms or transit-kmsctl", &unknown);
}

#[test]
fn metrics_are_documented() {
    let known = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let known = metrics_in(&known);
    let base = |name: &str| {
        let stem = ["_bucket", "_count", "_sum"].iter().find_map(|suffix| name.strip_suffix(suffix));
        stem.unwrap_or(name).to_owned()
    };
    let mut unknown = Vec::new();
    for document in Document::all() {
        let named = metrics_in(&document.text()).into_iter();
        let undocumented = named.filter(|name| !known.contains(&base(name)));
        unknown.extend(undocumented.map(|name| format!("{}: {name}", document.path.display())));
    }
    assert_none("are not in docs/metrics.md", &unknown);
}

/// Blocks marked `transit-kms` contain one message per line, with `…` for the parts that vary.
#[test]
fn messages_exist() {
    let sources = sources();
    let mut unknown = Vec::new();
    let mut quoted = 0;
    for document in Document::all() {
        for message in
            document.blocks.iter().filter(|it| it.info == "transit-kms").flat_map(|it| it.text.lines())
        {
            quoted += 1;
            if let Some(part) = message.split('…').map(str::trim).find(|part| !sources.contains(part)) {
                unknown.push(format!("{}: {part:?} of {message:?}", document.path.display()));
            }
        }
    }
    assert!(quoted > 50, "{quoted}");
    assert_none("are not in the sources", &unknown);
}

#[test]
fn yaml_is_accepted() {
    let mut parsed = 0;
    for document in Document::all() {
        for block in document.blocks.iter().filter(|block| block.info == "yaml") {
            let whence = format!("{}:\n{}", document.path.display(), block.text);
            let value: Value =
                serde_yaml::from_str(&block.text).unwrap_or_else(|e| panic!("{e} in {whence}"));
            if value["kind"] == "EncryptionConfiguration" {
                assert_encrypts(&value, &whence);
                parsed += 1;
            } else if value.get("vault").is_some() {
                let taken = parse(block.text.as_bytes(), Path::new("it"), ParseOptions::default());
                assert!(taken.is_ok(), "{taken:?} of {whence}");
                parsed += 1;
            }
        }
    }
    assert!(parsed >= 3, "{parsed}");
}

#[test]
fn commands_parse() {
    let mut wrong = Vec::new();
    for document in Document::all() {
        for block in document.blocks.iter().filter(|block| block.info == "sh") {
            let parsed = command("bash").args(["-n", "-c", &block.text]).output().unwrap();
            // bash only warns about a here-document that is not terminated.
            if !parsed.status.success() || !parsed.stderr.is_empty() {
                let said = String::from_utf8_lossy(&parsed.stderr).into_owned();
                wrong.push(format!("{}: {said}{}", document.path.display(), block.text));
            }
        }
    }
    assert_none("do not parse as shell commands", &wrong);
}

#[test]
fn every_alert_has_its_section() {
    let rules = fs::read_to_string(root().join("charts/transit-kms/files/rules.yaml")).unwrap();
    let troubleshooting = Document::read(Path::new("docs/troubleshooting.md")).anchors();
    let alerts =
        rules.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("alert: "));
    let without: Vec<String> =
        alerts.map(str::to_lowercase).filter(|alert| !troubleshooting.contains(alert)).collect();
    assert_none("have no section in docs/troubleshooting.md", &without);
}

/// Runs the commands of the first step of docs/install.md against a real server.
#[tokio::test]
async fn vault_is_set_up_as_written() {
    let (bao, dir) = (Bao::start().await, temp_dir("install-"));
    let install = fs::read_to_string(root().join("docs/install.md")).unwrap();
    let (_, step) = install.split_once("\n## 1. ").unwrap();
    let (step, _) = step.split_once("\n## 2. ").unwrap();
    let script: Vec<String> = blocks(step).into_iter().map(|block| block.text).collect();
    // The documents say `vault`; the test may use `bao`.
    symlink(Bao::program(), dir.path().join("vault")).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let mut shell = command("bash");
    shell.args(["-c", &script.join("\n")]).current_dir(dir.path());
    shell.env("PATH", path).env("HOME", dir.path());
    shell.env("VAULT_ADDR", bao.address()).env("VAULT_CACERT", bao.ca_file());
    shell.env("VAULT_TOKEN", bao.root_token());
    let output = tokio::process::Command::from(shell).output().await.unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    for expected in ["[transit-kms-east]", "vault:v1:", "latest_version"] {
        assert!(said.contains(expected), "{expected} is not in\n{said}");
    }
    assert_eq!(said.matches("permission denied").count(), 2, "{said}");
    for file in ["role_id", "secret_id"] {
        assert_eq!(fs::read_to_string(dir.path().join(file)).unwrap().trim().len(), 36, "{said}");
    }
}

/// All flags that the `--help` texts of both programs name.
async fn flags() -> BTreeSet<String> {
    helps().await.iter().flat_map(|(_, help)| flags_in(help)).collect()
}

/// The arguments that a line of shell passes to one of the programs.
fn program_arguments(line: &str) -> Option<String> {
    const COMMANDS: [&str; 7] = [
        "transit-kms serve ",
        "transit-kms keygen ",
        "transit-kms probe ",
        "kms probe ",
        "transit-kmsctl plugin ",
        "transit-kmsctl seal ",
        "transit-kmsctl secret-id ",
    ];
    let (_, arguments) = COMMANDS.iter().find_map(|program| line.split_once(program))?;
    Some(arguments.split(['|', '#']).next().unwrap_or_default().to_owned())
}

fn flags_in(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'));
    words.filter(|word| word.starts_with("--") && word.len() > 2).map(str::to_owned).collect()
}

fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
    words.filter(|word| word.starts_with("transit_kms_")).map(str::to_owned).collect()
}

/// The text of all sources, with continued string literals joined, and the messages of Vault.
fn sources() -> String {
    let mut files = Vec::new();
    walk(&root().join("src"), "rs", &mut files);
    walk(&root().join("crates"), "rs", &mut files);
    let mut all = fs::read_to_string(root().join("tests/golden/vault_errors.tsv")).unwrap();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        let mut joined = text.split("\\\n");
        all.push_str(joined.next().unwrap_or_default());
        joined.for_each(|rest| all.push_str(rest.trim_start()));
    }
    all
}

fn assert_encrypts(config: &Value, whence: &str) {
    assert_eq!(config["apiVersion"], "apiserver.config.k8s.io/v1", "{whence}");
    for rule in config["resources"].as_array().unwrap() {
        assert!(rule["resources"].is_array(), "{whence}");
        for provider in rule["providers"].as_array().unwrap() {
            let kms = &provider["kms"];
            if kms.is_null() {
                assert!(provider["identity"].is_object(), "{whence}");
                continue;
            }
            assert!(kms["apiVersion"] == "v2" && kms["name"].is_string(), "{whence}");
            assert!(kms["endpoint"].as_str().unwrap().starts_with("unix:///"), "{whence}");
        }
    }
}
