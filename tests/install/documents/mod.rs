//! Checks the documents against the program and against the rules of style.

mod claims;
mod introduction;
mod language;
mod links;
mod logins;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use testkit::cli::{run, run_kmsctl};

/// A Markdown file: its prose, and its fenced blocks.
struct Document {
    blocks: Vec<Block>,
    /// From the root of the repository.
    path: PathBuf,
    prose: String,
}

struct Block {
    /// The text after the opening fence, such as `yaml`.
    info: String,
    text: String,
}

impl Document {
    fn all() -> Vec<Self> {
        let mut files = Vec::new();
        walk(&root(), "md", &mut files);
        assert!(files.len() > 10, "some documents are missing");
        files.iter().map(|file| Self::read(file.strip_prefix(root()).unwrap())).collect()
    }

    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(root().join(path)).unwrap();
        Self { blocks: blocks(&text), path: path.to_owned(), prose: prose(&text) }
    }

    fn text(&self) -> String {
        self.blocks.iter().map(|block| block.text.clone()).chain([self.prose.clone()]).collect()
    }

    /// The code spans, without their backticks.
    fn spans(&self) -> Vec<String> {
        let paragraphs = self.prose.split("\n\n");
        let spans = paragraphs.flat_map(|paragraph| paragraph.split('`').skip(1).step_by(2));
        spans.map(|span| span.replace('\n', " ")).collect()
    }

    /// The targets of links within the repository.
    fn links(&self) -> Vec<String> {
        let targets = self.prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        targets.map(|(target, _)| target.to_owned()).filter(|target| !target.contains("://")).collect()
    }

    /// The anchors that GitHub derives from headings.
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

/// `text` with fenced blocks replaced by empty lines, so that line numbers stay the same.
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

/// The `--help` texts of transit-kms, of transit-kmsctl and of each subcommand, with the command line that prints it.
async fn helps() -> Vec<(String, String)> {
    let mut helps = Vec::new();
    let mut commands = vec![vec!["transit-kms".to_owned()], vec!["transit-kmsctl".to_owned()]];
    while let Some(command) = commands.pop() {
        let mut arguments: Vec<&str> = command.iter().skip(1).map(String::as_str).collect();
        arguments.push("--help");
        let ran = match command[0].as_str() {
            "transit-kms" => run(&arguments).await,
            _ => run_kmsctl(&arguments, "").await,
        };
        let help = ran.stdout;
        assert!(!help.is_empty(), "{command:?}");
        let (_, listed) = help.split_once("\nCommands:\n").unwrap_or_default();
        let listed = listed.lines().take_while(|line| !line.is_empty());
        let names = listed.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
        for name in names.filter(|name| !name.is_empty() && *name != "help") {
            commands.push(command.iter().cloned().chain([name.to_owned()]).collect());
        }
        helps.push((format!("{} --help", command.join(" ")), help));
    }
    helps
}

fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "these {what}:\n{}", found.join("\n"));
}
