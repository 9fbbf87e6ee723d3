//! Starts programs without the user's environment, and kills them at the end of the test.
//!
//! - [`Process`]: a child process; its output is kept.
//! - [`command`]: creates every command.
//! - [`cgroup`]: removes control groups; [`no_inotify`]: runs a program where inotify is exhausted.

pub mod cgroup;
mod child;
pub mod command;
pub mod no_inotify;

pub use child::Process;
