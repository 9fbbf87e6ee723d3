//! Figures that tests measure on the way: `scripts/test` prints them at the end.

use std::{fs::File, io::Write};

const FILE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/e2e-figures.txt");

/// Notes a line. Nothing is asserted on it.
pub(crate) fn figure(scenario: &str, text: &str) {
    let mut file = File::options().append(true).create(true).open(FILE).unwrap();
    file.write_all(format!("{scenario}: {text}\n").as_bytes()).unwrap();
}
