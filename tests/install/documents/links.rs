//! Links and paths in the documents lead to something that exists.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use super::{Document, assert_none, root};

/// A word that starts with one of these is a path from the root of the repository.
const FOLDERS: [&str; 10] = [
    ".ci/",
    ".github/",
    "benches/",
    "charts/",
    "crates/",
    "docs/",
    "manifests/",
    "scripts/",
    "src/",
    "tests/",
];

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

#[test]
fn files_exist() {
    let mut missing = Vec::new();
    for document in Document::all() {
        let lines = document.blocks.iter().flat_map(|block| block.text.lines().map(str::to_owned));
        for text in lines.chain(document.spans()) {
            for word in text.split(|c: char| c.is_whitespace() || "`'\"()|,;".contains(c)) {
                // For a pattern, check the folder that it is in.
                let path = word.split('*').next().unwrap_or_default().trim_end_matches(['.', ':']);
                let local =
                    FOLDERS.iter().any(|folder| path.starts_with(folder) && path.len() > folder.len());
                if local && !path.contains(['{', '…', '$']) && !root().join(path).exists() {
                    missing.push(format!("{}: {path}", document.path.display()));
                }
            }
        }
    }
    assert_none("do not exist", &missing);
}

/// Resolves `.` and `..`. The file need not exist.
fn normal(path: &Path) -> PathBuf {
    let mut parts: Vec<&OsStr> = Vec::new();
    for part in path {
        match part.to_str() {
            Some(".") => {}
            Some("..") => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.iter().collect()
}
