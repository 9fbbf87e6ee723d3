//! What the tests stand on: real servers, real agents and the real daemon, one set a test.
//!
//! Everything here ends with the test that made it, by process id, and says what it printed if
//! that test failed. Nothing sleeps and hopes: tests wait with [`eventually`].

#![allow(missing_docs, reason = "a name says what a part of the tests does")]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::string_slice,
    clippy::unreachable,
    clippy::unwrap_used,
    reason = "a part that does not work fails the test that uses it"
)]

mod agent;
pub mod authority;
mod caller;
pub mod calls;
pub mod cgroup;
pub mod cluster;
pub mod command;
pub mod credentials;
pub mod daemon;
mod disk;
pub mod faults;
pub mod figures;
mod gaps;
pub mod http;
mod load;
mod no_inotify;
mod observed;
mod own_folder;
pub mod port;
pub mod process;
pub mod program;
pub mod raw;
mod redial;
pub mod rendered;
pub mod repository;
mod scratch;
mod seed;
mod server;
mod stage;
mod trio;
mod wait;
mod wire;

pub use agent::{Agent, AgentOptions, Login};
pub use caller::{Caller, version_of_ciphertext, version_of_key_id};
pub use calls::TIMEOUT;
pub use command::command;
pub use daemon::{Daemon, DaemonOptions, Kms, connect, kms_client, unix_url};
pub use disk::SmallDisk;
pub use faults::{Fault, FaultProxy};
pub use gaps::Gaps;
pub use load::Load;
pub use no_inotify::without_inotify;
pub use observed::{LoadReport, Observer};
pub use own_folder::own_folder;
pub use port::closed_address;
pub use redial::{LastingKms, lasting_client};
pub use rendered::Rendered;
pub use scratch::scratch;
pub use server::{Bao, BaoOptions, KEY, MOUNT, POLICY, Program, policy};
pub use stage::{Stage, TAKEN_WITHIN, probes, wait_for_session_after};
pub use trio::Trio;
pub use wait::{Verdict, eventually};
pub use wire::Wire;

/// Whether the long versions of tests are asked for (`scripts/test --full`).
pub fn full() -> bool {
    std::env::var_os("TRANSIT_KMS_TEST_FULL").is_some_and(|asked| !asked.is_empty() && asked != "0")
}
