//! The text for readers avoids the phrases that docs/contributing/style.md bans.

use std::{fs, path::Path};

use super::{assert_none, helps, prose, root, walk};

/// The files and folders that are checked; `--help` stands for all help texts. To check more, add it here.
const CHECKED: &[&str] = &[
    "--help",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "RELEASING.md",
    "SECURITY.md",
    "benches",
    "charts",
    "crates",
    "docs",
    "manifests",
    "src",
    "tests",
];
/// The kinds of files that are checked in a folder. Of a Rust file, the comments, the string literals and the names
/// of functions are checked.
const EXTENSIONS: [&str; 8] = ["gotmpl", "hcl", "md", "rs", "service", "tpl", "txt", "yaml"];
/// Each banned phrase, in lower case, and what to write instead.
const BANNED: &[(&str, &str)] = &[
    ("anew", "again, or a verb such as recreate"),
    ("but for", "except for"),
    ("came back", "recovered, or was restored"),
    ("come back", "recover, or is available again"),
    ("comes back", "recovers, or is available again"),
    ("dead token", "invalid token"),
    ("for ever", "without limit, or permanently"),
    ("for so long", "the duration"),
    ("go on", "continue"),
    ("goes on", "continues"),
    ("going on", "continuing"),
    ("has a say", "name what it decides"),
    ("has to say", "the message, or the result"),
    ("is told", "receives, or the name of the message"),
    ("knows nothing", "does not use, or does not depend on"),
    ("let's", "an imperative"),
    ("nobody", "no user, no process, or name who"),
    ("old news", "name what is out of date"),
    ("only then", "after that, or once"),
    ("our", "transit-kms', its, or this"),
    ("ours", "transit-kms', its, or this"),
    ("so long as", "while, or if"),
    ("so many", "the number, or this many"),
    ("so often", "the interval"),
    ("somebody", "name who: another user, another process"),
    ("speaks for", "shows that, or names what follows"),
    ("us", "transit-kms, or it"),
    ("we", "transit-kms, it, or you"),
    ("what stands in", "the contents of"),
    ("who is asked", "which node is asked"),
    ("whoever", "a user who, or the process that"),
];

#[tokio::test]
async fn banned_phrases_are_not_used() {
    let mut found = Vec::new();
    for checked in CHECKED {
        if *checked == "--help" {
            for (command, help) in helps().await {
                found.extend(banned_in(&help).map(|phrase| format!("{command}: {phrase}")));
            }
            continue;
        }
        let mut files = Vec::new();
        let path = root().join(checked);
        if path.is_dir() {
            EXTENSIONS.iter().for_each(|extension| walk(&path, extension, &mut files));
        } else {
            files.push(path);
        }
        // This file lists the phrases.
        files.retain(|file| !file.ends_with("documents/language.rs"));
        assert!(!files.is_empty(), "{checked} has no text");
        for file in files {
            let name = file.strip_prefix(root()).unwrap().display().to_string();
            let text = readable(&file, &fs::read_to_string(&file).unwrap());
            found.extend(banned_in(&text).map(|phrase| format!("{name}:{phrase}")));
        }
    }
    assert_none("phrases are banned; docs/contributing/style.md has the rules", &found);
}

#[test]
fn banned_phrases_are_found_where_readers_see_them() {
    let found = |file: &str, text: &str| -> Vec<String> {
        banned_in(&readable(Path::new(file), text)).map(|it| it.split(" (").next().unwrap().into()).collect()
    };
    assert_eq!(found("a.md", "Here\nWe wait, so long\nas it lasts."), ["2: we", "2: so long as"]);
    assert_eq!(
        found("a.md", "It waits, but for `we` only.\n\n```sh\necho us\n```\n(ours)"),
        ["1: but for", "6: ours"]
    );
    assert!(found("a.md", "In the US, but, for example, anewton; the user's `our\nus` bus").is_empty());
    let code = "let us = 'b'; // `we` and us\nlet we = (\"we\\\"\", r#\"\"our\"\"#, '\"', \"b\");\n/// Of what\n/// is told.\nours();\nfn it_is_told() { we() }";
    assert_eq!(
        found("a.rs", code),
        ["1: us", "2: we", "2: our", "4: is told", "6: is told"].map(String::from)
    );
}

/// Each banned phrase in `text` as `line: phrase (write ...)`. Fenced blocks and code spans are skipped.
fn banned_in(text: &str) -> impl Iterator<Item = String> {
    let words = words(&without_spans(&prose(text)));
    (0..words.len()).flat_map(move |start| {
        let here = &words[start..];
        let line = here[0].0;
        let starts = |phrase: &str| {
            let count = phrase.split(' ').count();
            count <= here.len() && phrase.split(' ').zip(here).all(|(wanted, (_, word))| wanted == word)
        };
        let banned: Vec<String> = BANNED
            .iter()
            .filter(|(phrase, _)| starts(phrase))
            .map(|(phrase, instead)| format!("{line}: {phrase} (write: {instead})"))
            .collect();
        banned
    })
}

/// The words in lower case with their lines. A punctuation mark becomes an empty word, so that no phrase spans it.
fn words(text: &str) -> Vec<(usize, String)> {
    let mut words = Vec::new();
    for (line, content) in text.lines().enumerate() {
        for chunk in content.split_whitespace() {
            let word = chunk.trim_matches(|c: char| !c.is_alphanumeric());
            let (before, after) = chunk.split_once(word).unwrap_or_default();
            let breaks = |marks: &str| marks.contains(|c: char| !"*_".contains(c));
            if word.is_empty() || breaks(before) {
                words.push((line + 1, String::new()));
            }
            if word == "US" {
                continue;
            }
            let lower = word.to_lowercase().replace('’', "'");
            let stem = match lower.split_once('\'') {
                Some(("we", _)) => "we",
                _ => &lower,
            };
            words.push((line + 1, stem.to_owned()));
            if breaks(after) {
                words.push((line + 1, String::new()));
            }
        }
    }
    words
}

/// `text` with a placeholder for each code span. A paragraph without a closing backtick keeps the rest of its text.
fn without_spans(text: &str) -> String {
    let paragraphs = text.split("\n\n").map(|paragraph| {
        let mut parts = paragraph.split('`').enumerate().peekable();
        let mut kept = String::new();
        while let Some((number, part)) = parts.next() {
            if number % 2 == 0 || parts.peek().is_none() {
                kept.push_str(part);
            } else {
                kept.push('`');
                kept.extend(part.chars().filter(|c| *c == '\n'));
            }
        }
        kept
    });
    paragraphs.collect::<Vec<_>>().join("\n\n")
}

/// What a reader sees of a file. Of Rust code, only comments, string literals and the names of functions remain, at
/// their lines.
fn readable(file: &Path, text: &str) -> String {
    if file.extension().is_none_or(|extension| extension != "rs") {
        return text.to_owned();
    }
    let mut kept = String::new();
    let mut rest = text;
    let mut is_function = false;
    while let Some(next) = rest.chars().next() {
        if rest.starts_with("//") {
            let (comment, after) = rest.split_at(rest.find('\n').unwrap_or(rest.len()));
            kept.push_str(comment.trim_start_matches(['/', '!']));
            rest = after;
        } else if let Some((literal, after)) = string_literal(rest) {
            kept.push_str(literal);
            kept.push_str(" . ");
            rest = after;
        } else if let Some(after) = after_char_literal(rest) {
            rest = after;
        } else if next.is_alphanumeric() || next == '_' {
            // A whole identifier, because `r` or `b` at its end starts no literal.
            let after = rest.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
            let name = rest.strip_suffix(after).unwrap_or_default();
            if is_function {
                kept.push_str(&format!(" . {} . ", name.replace('_', " ")));
            }
            is_function = name == "fn";
            rest = after;
        } else {
            kept.extend((next == '\n').then_some('\n'));
            rest = rest.split_at(next.len_utf8()).1;
        }
    }
    kept
}

/// The contents of the string literal that `code` starts with, and the code after it.
fn string_literal(code: &str) -> Option<(&str, &str)> {
    let (prefix, quoted) = code.split_at(code.find(|c| !"bcr".contains(c)).filter(|length| *length <= 2)?);
    let raw = prefix.contains('r');
    let opened = quoted.trim_start_matches('#');
    let hashes = "#".repeat(quoted.len() - opened.len());
    if !raw && !hashes.is_empty() {
        return None;
    }
    let body = opened.strip_prefix('"')?;
    let mut escaped = false;
    body.char_indices().find_map(|(at, c)| {
        let (literal, end) = body.split_at(at);
        let after = end.strip_prefix('"').filter(|_| !escaped).and_then(|end| end.strip_prefix(&hashes));
        escaped = c == '\\' && !escaped && !raw;
        after.map(|after| (literal, after))
    })
}

/// The code after the character literal that `code` starts with. A lifetime is not a literal.
fn after_char_literal(code: &str) -> Option<&str> {
    let inside = code.strip_prefix('\'')?;
    let (escaped, first) = match inside.strip_prefix('\\') {
        Some(escape) => (true, escape),
        None => (false, inside),
    };
    let (_, after) = first.split_at(first.chars().next()?.len_utf8());
    if escaped { after.split_once('\'').map(|(_, after)| after) } else { after.strip_prefix('\'') }
}
