//! The program `transit-kms`; see [`transit_kms::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    transit_kms::cli::main()
}
