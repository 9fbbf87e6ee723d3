//! Measurements that tests make; `scripts/test` prints them at the end.

use std::{fs::File, io::Write};

use crate::files::repository::shared_folder;

const FILE: &str = "e2e-figures.txt";

/// Appends a line to the measurements. Nothing checks it.
pub fn record_measurement(scenario: &str, text: &str) {
    let mut file = File::options().append(true).create(true).open(shared_folder().join(FILE)).unwrap();
    file.write_all(format!("{scenario}: {text}\n").as_bytes()).unwrap();
}
