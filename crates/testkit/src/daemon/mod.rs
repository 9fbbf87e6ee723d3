//! Starts and stops `transit-kms serve`.
//!
//! - [`process`]: one daemon with its sockets.
//! - [`test_env`]: an OpenBao server and a rendered config, for tests that need nothing special.
//! - [`config_file`]: the rendered config, and the ways in which such a file is replaced.
//! - [`cli`]: runs other commands of the program to their end.

pub mod cli;
pub mod config_file;
pub mod process;
pub mod test_env;

pub use process::samples;
