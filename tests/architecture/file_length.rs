//! A file is short enough to be read in one go.

use std::fs;

use testkit::repository;

use super::imports::sources;

/// Lines of a file without its tests.
const MAX_LINES: usize = 450;
/// Lines of tests at the end of a file; longer tests are in a file of their own.
const MAX_INLINE_TEST_LINES: usize = 160;
/// Where inline tests begin.
const TESTS: &str = "\n#[cfg(test)]\nmod tests {\n";

#[test]
fn no_file_is_too_long() {
    let mut too_long = Vec::new();
    for folder in ["src", "crates"] {
        for file in sources(&repository::path(folder)) {
            let is_test =
                file.components().any(|part| part.as_os_str() == "tests") || file.ends_with("tests.rs");
            let text = fs::read_to_string(&file).unwrap();
            let (code, tests) = text.split_once(TESTS).unwrap_or((&text, ""));
            let (code, tests) = (code.lines().count(), tests.lines().count());
            let name = file.strip_prefix(repository::ROOT).unwrap().display();
            if code > MAX_LINES && !is_test {
                too_long.push(format!("{name}: {code} lines, at most {MAX_LINES}: split it"));
            }
            if tests > MAX_INLINE_TEST_LINES {
                too_long.push(format!(
                    "{name}: {tests} lines of tests, at most {MAX_INLINE_TEST_LINES}: move them to a file of their own"
                ));
            }
        }
    }
    assert!(too_long.is_empty(), "{}", too_long.join("\n"));
}
