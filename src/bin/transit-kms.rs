//! The daemon that stands between kube-apiserver and a Transit key.

use std::process::ExitCode;

fn main() -> ExitCode {
    transit_kms::cli::main()
}
