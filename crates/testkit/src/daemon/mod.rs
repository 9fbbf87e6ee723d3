//! Starts and stops the daemon, writes its config, and runs its other commands.

pub mod cli;
pub mod config_file;
pub mod process;
pub mod test_env;

pub use process::samples;
