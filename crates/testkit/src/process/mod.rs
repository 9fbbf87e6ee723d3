//! Starts programs without the user's environment, and ends them with the test.

pub mod cgroup;
mod child;
pub mod command;
pub mod no_inotify;

pub use child::Process;
