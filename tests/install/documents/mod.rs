//! What the documents say is so: links, flags, metrics, messages, files, YAML, commands.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use serde_json::Value;
use testkit::{Bao, command, program::run, scratch};
use transit_kms::config::{ParseOptions, parse};

/// Flags of others that stand alone in backticks. What stands behind a program's name is its own.
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
/// Where what is named by its path from the root lies.
const FOLDERS: [&str; 8] =
    ["benches/", "charts/", "crates/", "docs/", "manifests/", "scripts/", "src/", "tests/"];

#[test]
fn links_lead_somewhere() {
    let documents = Document::all();
    let mut broken = Vec::new();
    for document in &documents {
        for target in document.links() {
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let file = match path {
                "" => document.path.clone(),
                path => normal(&document.path.parent().unwrap().join(path)),
            };
            let there = match documents.iter().find(|other| other.path == file) {
                Some(other) => anchor.is_empty() || other.anchors().contains(anchor),
                None => anchor.is_empty() && root().join(&file).exists(),
            };
            if !there {
                broken.push(format!("{}: {target}", document.path.display()));
            }
        }
    }
    assert_none("lead nowhere", &broken);
}

#[tokio::test]
async fn flags_are_ours() {
    let ours = flags().await;
    let mut unknown = Vec::new();
    for document in Document::all() {
        let lines = document.blocks.iter().flat_map(|block| block.text.lines().map(str::to_owned));
        let commands = lines.chain(document.spans()).filter_map(|line| our_command(&line));
        let spans = document.spans().into_iter().filter(|span| span.starts_with("--"));
        for flag in commands.chain(spans).flat_map(|text| flags_in(&text)) {
            if !ours.contains(&flag) && !FOREIGN.contains(&flag.as_str()) {
                unknown.push(format!("{}: {flag}", document.path.display()));
            }
        }
    }
    assert_none("are no flags of ours", &unknown);
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

/// Blocks that are marked `transit-kms` hold a message a line, with `…` for what varies.
#[test]
fn messages_are_ours() {
    let sources = sources();
    let mut made_up = Vec::new();
    let mut quoted = 0;
    for document in Document::all() {
        for message in
            document.blocks.iter().filter(|it| it.info == "transit-kms").flat_map(|it| it.text.lines())
        {
            quoted += 1;
            if let Some(part) = message.split('…').map(str::trim).find(|part| !sources.contains(part)) {
                made_up.push(format!("{}: {part:?} of {message:?}", document.path.display()));
            }
        }
    }
    assert!(quoted > 50, "{quoted}");
    assert_none("are said nowhere", &made_up);
}

#[test]
fn files_exist() {
    let mut missing = Vec::new();
    for document in Document::all() {
        let lines = document.blocks.iter().flat_map(|block| block.text.lines().map(str::to_owned));
        for text in lines.chain(document.spans()) {
            for word in text.split(|c: char| c.is_whitespace() || "`'\"()|,;".contains(c)) {
                // Of a pattern, its folder.
                let path = word.split('*').next().unwrap_or_default().trim_end_matches(['.', ':']);
                let ours = FOLDERS.iter().any(|folder| path.starts_with(folder) && path.len() > folder.len());
                if ours && !path.contains(['{', '…', '$']) && !root().join(path).exists() {
                    missing.push(format!("{}: {path}", document.path.display()));
                }
            }
        }
    }
    assert_none("do not exist", &missing);
}

#[test]
fn yaml_is_taken() {
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
            // That a here-document ends with the text is only warned of.
            if !parsed.status.success() || !parsed.stderr.is_empty() {
                let said = String::from_utf8_lossy(&parsed.stderr).into_owned();
                wrong.push(format!("{}: {said}{}", document.path.display(), block.text));
            }
        }
    }
    assert_none("are not what a shell takes", &wrong);
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

/// The first step of docs/install.md, as it stands there, with a real server.
#[tokio::test]
async fn vault_is_set_up_as_written() {
    let (bao, dir) = (Bao::start().await, scratch("install-"));
    let install = fs::read_to_string(root().join("docs/install.md")).unwrap();
    let (_, step) = install.split_once("\n## 1. ").unwrap();
    let (step, _) = step.split_once("\n## 2. ").unwrap();
    let script: Vec<String> = blocks(step).into_iter().map(|block| block.text).collect();
    // What the documents call vault may be bao.
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

/// A Markdown file: its prose, and its fenced blocks.
struct Document {
    blocks: Vec<Block>,
    /// From the root of the repository.
    path: PathBuf,
    prose: String,
}

struct Block {
    /// What stands behind the fence.
    info: String,
    text: String,
}

impl Document {
    fn all() -> Vec<Self> {
        let mut files = Vec::new();
        walk(&root(), "md", &mut files);
        assert!(files.len() > 10, "that is not all");
        files.iter().map(|file| Self::read(file.strip_prefix(root()).unwrap())).collect()
    }

    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(root().join(path)).unwrap();
        Self { blocks: blocks(&text), path: path.to_owned(), prose: prose(&text) }
    }

    fn text(&self) -> String {
        self.blocks.iter().map(|block| block.text.clone()).chain([self.prose.clone()]).collect()
    }

    /// What stands in backticks.
    fn spans(&self) -> Vec<String> {
        let paragraphs = self.prose.split("\n\n");
        let spans = paragraphs.flat_map(|paragraph| paragraph.split('`').skip(1).step_by(2));
        spans.map(|span| span.replace('\n', " ")).collect()
    }

    /// Where links lead to in here.
    fn links(&self) -> Vec<String> {
        let targets = self.prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        targets.map(|(target, _)| target.to_owned()).filter(|target| !target.contains("://")).collect()
    }

    /// As GitHub makes them of headings.
    fn anchors(&self) -> BTreeSet<String> {
        let headings = self.prose.lines().filter(|line| line.starts_with('#'));
        let anchor = |heading: &str| {
            let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
            heading.trim_start_matches('#').trim().to_lowercase().chars().filter(kept).collect::<String>()
        };
        headings.map(|heading| anchor(heading).replace(' ', "-")).collect()
    }
}

fn root() -> PathBuf {
    PathBuf::from(testkit::repository::ROOT)
}

fn walk(folder: &Path, extension: &str, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() && !path.is_symlink() && name != "target" && !name.starts_with('.') {
            walk(&path, extension, into);
        } else if path.extension().is_some_and(|found| found == extension) {
            into.push(path);
        }
    }
}

/// Without `.` and `..`; the file need not exist.
fn normal(path: &Path) -> PathBuf {
    let mut parts: Vec<&std::ffi::OsStr> = Vec::new();
    for part in path {
        match part.to_str() {
            Some(".") => {}
            Some("..") => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.iter().collect()
}

fn is_fence(line: &str) -> bool {
    line.trim_start().starts_with("```")
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(fence) = lines.find(|line| is_fence(line)) {
        let indent = fence.len() - fence.trim_start().len();
        let body = lines.by_ref().take_while(|line| !is_fence(line));
        let text: String = body.map(|line| format!("{}\n", line.get(indent..).unwrap_or(line))).collect();
        blocks.push(Block { info: fence.trim().trim_start_matches('`').to_owned(), text });
    }
    blocks
}

fn prose(text: &str) -> String {
    let mut fenced = false;
    let mut prose = String::new();
    for line in text.lines() {
        fenced ^= is_fence(line);
        if !fenced && !is_fence(line) {
            prose.push_str(line);
        }
        prose.push('\n');
    }
    prose
}

/// All that the program's helps name.
async fn flags() -> BTreeSet<String> {
    let mut flags = BTreeSet::new();
    let mut commands = vec![Vec::new()];
    while let Some(command) = commands.pop() {
        let mut arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        arguments.push("--help");
        let help = run(&arguments).await.stdout;
        flags.extend(flags_in(&help));
        let (_, listed) = help.split_once("\nCommands:\n").unwrap_or_default();
        let listed = listed.lines().take_while(|line| !line.is_empty());
        let names = listed.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
        for name in names.filter(|name| !name.is_empty() && *name != "help") {
            commands.push(command.iter().cloned().chain([name.to_owned()]).collect());
        }
    }
    flags
}

/// What is said to our program in this line of a shell.
fn our_command(line: &str) -> Option<String> {
    let (_, ours) = ["transit-kms serve ", "transit-kms probe ", "kms probe "]
        .iter()
        .find_map(|program| line.split_once(program))?;
    Some(ours.split(['|', '#']).next().unwrap_or_default().to_owned())
}

fn flags_in(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'));
    words.filter(|word| word.starts_with("--") && word.len() > 2).map(str::to_owned).collect()
}

fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
    words.filter(|word| word.starts_with("transit_kms_")).map(str::to_owned).collect()
}

/// What the sources say, with strings that go over several lines in one, and what Vault says.
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

fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "these {what}:\n{}", found.join("\n"));
}
