//! Figures that tests measure on the way: `scripts/test` prints them at the end.

use std::{fs::File, io::Write};

use crate::files::repository::shared_folder;

const FILE: &str = "e2e-figures.txt";

/// Notes a line. Nothing is asserted on it.
pub fn figure(scenario: &str, text: &str) {
    let mut file = File::options().append(true).create(true).open(shared_folder().join(FILE)).unwrap();
    file.write_all(format!("{scenario}: {text}\n").as_bytes()).unwrap();
}
