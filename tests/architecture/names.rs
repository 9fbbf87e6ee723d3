//! One name means one thing: no two types of the daemon have the same name.

use std::{collections::BTreeMap, fs};

use proc_macro2::{TokenStream, TokenTree};
use testkit::repository;

use super::imports::sources;

/// The code of the daemon.
const FOLDERS: &[&str] = &[
    "src",
    "crates/aws-identity/src",
    "crates/error-text/src",
    "crates/kms-plugin/src",
    "crates/sealed-payload/src",
    "crates/spiffe-identity/src",
    "crates/transit-client/src",
];

#[test]
fn no_two_types_have_the_same_name() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for folder in FOLDERS {
        for file in sources(&repository::path(folder)) {
            let is_test = |part: &str| part.starts_with("test");
            let name = file.strip_prefix(repository::ROOT).unwrap();
            if name.iter().any(|part| is_test(&part.to_string_lossy())) {
                continue;
            }
            for type_name in types(fs::read_to_string(&file).unwrap().parse().unwrap()) {
                places.entry(type_name).or_default().push(name.display().to_string());
            }
        }
    }
    assert!(places.len() > 150, "these are not all: {}", places.len());
    let twice: Vec<_> = places.iter().filter(|(_, files)| files.len() > 1).collect();
    assert!(twice.is_empty(), "rename all but one: {twice:#?}");
}

#[test]
fn types_are_found_outside_of_tests() {
    let code = "struct A; pub enum B { C } mod m { trait D { type E; } } mod tests { struct F; } fn f() { struct G; }";
    assert_eq!(types(code.parse().unwrap()), ["A", "B", "D", "G"]);
}

/// The structs, enums and traits in `tokens`, without those of modules for tests.
fn types(tokens: TokenStream) -> Vec<String> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut found = Vec::new();
    let mut index = 0;
    while index < tokens.len() {
        match (&tokens[index], tokens.get(index + 1)) {
            (TokenTree::Ident(keyword), Some(TokenTree::Ident(name)))
                if ["enum", "struct", "trait"].iter().any(|it| keyword == it) =>
            {
                found.push(name.to_string());
                index += 2;
            }
            (TokenTree::Ident(keyword), Some(TokenTree::Ident(name)))
                if keyword == "mod" && name == "tests" =>
            {
                index += 3;
            }
            (TokenTree::Group(group), _) => {
                found.extend(types(group.stream()));
                index += 1;
            }
            _ => index += 1,
        }
    }
    found
}
