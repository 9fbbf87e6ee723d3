//! Imports point one way: a module imports only modules of lower layers.

use std::{
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{Delimiter, Ident, TokenStream, TokenTree};
use testkit::repository;

/// A package's source folder, and its top-level modules by layer, from the top down. A module may import modules
/// of lower layers. Modules of one layer may import each other only where `mutual` says so.
struct Package {
    folder: &'static str,
    layers: &'static [Layer],
}

struct Layer {
    modules: &'static [&'static str],
    mutual: bool,
}

/// Modules of one layer that do not know each other.
const fn layer(modules: &'static [&'static str]) -> Layer {
    Layer { modules, mutual: false }
}

/// Modules of one layer that know each other.
const fn mutual(modules: &'static [&'static str]) -> Layer {
    Layer { modules, mutual: true }
}

const PACKAGES: &[Package] = &[
    Package {
        folder: "src",
        layers: &[
            layer(&["cli"]),
            layer(&["app"]),
            layer(&["kms"]),
            layer(&["session"]),
            layer(&["server"]),
            layer(&["config"]),
            layer(&["exposure", "hardening", "supervisor"]),
            layer(&["observe"]),
        ],
    },
    Package {
        folder: "crates/aws-identity/src",
        layers: &[
            layer(&["ec2", "iam"]),
            layer(&["error", "login_fields", "signature"]),
            layer(&["credentials"]),
            layer(&["metadata", "nonce"]),
            layer(&["environment", "http_client"]),
        ],
    },
    Package {
        folder: "crates/transit-client/src",
        layers: &[
            // The unit tests of `vault` use its test doubles.
            mutual(&["testing", "vault"]),
            layer(&["metrics", "transit"]),
            mutual(&["ciphertext", "endpoint", "error", "key", "key_id", "operation", "rule", "token"]),
        ],
    },
    Package {
        folder: "crates/kms-plugin/src",
        layers: &[layer(&["cli"]), layer(&["client"]), layer(&["address", "grpc_timeout", "v1beta1", "v2"])],
    },
    Package {
        folder: "crates/sealed-payload/src",
        layers: &[layer(&["tests"]), layer(&["key"]), layer(&["envelope"]), layer(&["der", "pem"])],
    },
    Package {
        folder: "crates/spiffe-identity/src",
        layers: &[layer(&["workload_api"]), layer(&["file", "svid", "trust_domain"])],
    },
];

#[test]
fn a_module_imports_only_lower_layers() {
    let mut offending = Vec::new();
    for package in PACKAGES {
        let root = repository::path(package.folder);
        for file in sources(&root) {
            let text = fs::read_to_string(&file).unwrap();
            let module = module_of(file.strip_prefix(&root).unwrap());
            // `lib.rs` only names the modules, and programs may import all of them.
            let Some(top) = module.first().filter(|top| *top != "bin").cloned() else { continue };
            for import in imports(&text, module) {
                if let Err(reason) = package.allows(&top, &import.module) {
                    let name = file.strip_prefix(repository::ROOT).unwrap().display();
                    let line = text.lines().nth(import.line - 1).unwrap_or_default().trim();
                    offending.push(format!("{name}:{}: {reason}: {line}", import.line));
                }
            }
        }
    }
    assert!(offending.is_empty(), "imports against ARCHITECTURE.md:\n{}", offending.join("\n"));
}

#[test]
fn each_module_has_a_layer() {
    for package in PACKAGES {
        let root = repository::path(package.folder);
        for file in sources(&root) {
            let module = module_of(file.strip_prefix(&root).unwrap());
            if let Some(top) = module.first().filter(|top| *top != "bin") {
                assert!(package.layer_of(top).is_some(), "{top} of {} has no layer here", package.folder);
            }
        }
    }
}

#[test]
fn imports_are_found_in_every_form() {
    let found = |text: &str| {
        let imports = imports(text, vec!["kms".into(), "v2".into()]);
        imports.into_iter().map(|import| import.module).collect::<Vec<_>>()
    };
    assert_eq!(found("use crate::app::App;"), ["app"]);
    assert_eq!(found("use crate::{app, cli::{a, b}, session};"), ["app", "cli", "session"]);
    assert_eq!(found("fn f() { select! { () = crate::app::run() => {} } }"), ["app"]);
    assert_eq!(found("use super::super::app;"), ["app"]);
    assert_eq!(found("mod tests { use super::super::super::app; }"), ["app"]);
    assert_eq!(found("use super::{requests, super::app};"), ["app"]);
    assert!(
        found("use super::requests; // crate::app\n/// [`crate::app`]\nconst A: &str = \"crate::app\";")
            .is_empty()
    );
    let kms = &PACKAGES[0];
    assert!(kms.allows("kms", "session").is_ok() && kms.allows("kms", "kms").is_ok());
    assert!(kms.allows("session", "kms").unwrap_err().contains("session must not import kms"));
}

impl Package {
    fn layer_of(&self, module: &str) -> Option<usize> {
        self.layers.iter().position(|layer| layer.modules.contains(&module))
    }

    /// Whether `importer` may import `imported`; items of the crate's root, such as re-exports, are free.
    fn allows(&self, importer: &str, imported: &str) -> Result<(), String> {
        let (Some(from), Some(to)) = (self.layer_of(importer), self.layer_of(imported)) else {
            return Ok(());
        };
        let same_layer = from == to && self.layers[from].mutual;
        if importer == imported || from < to || same_layer {
            Ok(())
        } else {
            Err(format!("{importer} must not import {imported}"))
        }
    }
}

/// A path that leads to a top-level module of the crate.
struct Import {
    line: usize,
    module: String,
}

/// All paths in `text`, a file of `module`, that begin at the root of the crate: in `use` items, expressions,
/// types and macros.
fn imports(text: &str, module: Vec<String>) -> Vec<Import> {
    let tokens: TokenStream = text.parse().unwrap();
    let mut found = Vec::new();
    scan(tokens, module.len(), &mut found);
    found
}

/// Finds the imports in `tokens`, which are `depth` modules below the root of the crate.
fn scan(tokens: TokenStream, depth: usize, found: &mut Vec<Import>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut index = 0;
    while index < tokens.len() {
        match &tokens[index] {
            TokenTree::Ident(ident) if ident == "crate" || ident == "super" => {
                // `pub(crate)` and `pub(super)` have no path behind them.
                let ups = if ident == "crate" { depth } else { 1 };
                index = follow(&tokens, index + 1, depth, ups, found);
            }
            // The content of an inline module is one level deeper.
            TokenTree::Ident(ident) if ident == "mod" => {
                if let Some(TokenTree::Group(body)) = tokens.get(index + 2) {
                    scan(body.stream(), depth + 1, found);
                    index += 2;
                }
                index += 1;
            }
            TokenTree::Group(group) => {
                scan(group.stream(), depth, found);
                index += 1;
            }
            _ => index += 1,
        }
    }
}

/// Follows the rest of a path that has gone up `ups` modules; answers the index behind it.
fn follow(tokens: &[TokenTree], index: usize, depth: usize, ups: usize, found: &mut Vec<Import>) -> usize {
    let is_colon =
        |index: usize| matches!(tokens.get(index), Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
    if !is_colon(index) || !is_colon(index + 1) {
        return index;
    }
    match tokens.get(index + 2) {
        Some(TokenTree::Ident(ident)) if ident == "super" => follow(tokens, index + 3, depth, ups + 1, found),
        Some(TokenTree::Ident(ident)) => {
            note(ident, depth, ups, found);
            index + 3
        }
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
            let inner: Vec<TokenTree> = group.stream().into_iter().collect();
            let is_comma =
                |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ',');
            for item in inner.split(is_comma) {
                match item.first() {
                    Some(TokenTree::Ident(ident)) if ident == "super" => {
                        follow(item, 1, depth, ups + 1, found);
                    }
                    Some(TokenTree::Ident(ident)) => note(ident, depth, ups, found),
                    _ => {}
                }
            }
            index + 3
        }
        _ => index + 2,
    }
}

fn note(ident: &Ident, depth: usize, ups: usize, found: &mut Vec<Import>) {
    if ups >= depth {
        found.push(Import { line: ident.span().start().line, module: ident.to_string() });
    }
}

/// The module of a file, by its path from the root of the sources.
fn module_of(path: &Path) -> Vec<String> {
    let mut module: Vec<String> =
        path.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if module.last().is_some_and(|last| last == "mod" || last == "lib") {
        module.pop();
    }
    module
}

/// All Rust files below `folder`.
pub(super) fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}
