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

pub mod cluster;
pub mod daemon;
pub mod files;
pub mod kms;
pub mod measurements;
pub mod net;
pub mod process;
pub mod vault;
mod wait;

pub use daemon::{
    cli as program, config_file as rendered,
    config_file::Rendered,
    process::{Daemon, DaemonOptions, Kms, connect, kms_client, unix_url},
    test_env::{Stage, TAKEN_WITHIN, probes, wait_for_session_after},
};
pub use files::{process_dir::own_folder, repository, small_disk::SmallDisk, temp_dir::scratch};
pub use kms::{
    caller::{Caller, version_of_ciphertext, version_of_key_id},
    calls,
    calls::TIMEOUT,
    gaps::Gaps,
    load::Load,
    raw,
    reconnect::{LastingKms, lasting_client},
    report::{LoadReport, Observer},
};
pub use measurements as figures;
pub use net::{authority, http, link::Wire, port, port::closed_address};
pub use process::{cgroup, command, command::command, no_inotify::without_inotify};
pub use vault::{
    agent::{Agent, AgentOptions, Login},
    fault_proxy as faults,
    fault_proxy::{Fault, FaultProxy},
    login as credentials,
    server::{Bao, BaoOptions, KEY, MOUNT, POLICY, Program, policy},
    three_nodes::Trio,
};
pub use wait::{Verdict, eventually};

/// Whether the long versions of tests are asked for (`scripts/test --full`).
pub fn full() -> bool {
    std::env::var_os("TRANSIT_KMS_TEST_FULL").is_some_and(|asked| !asked.is_empty() && asked != "0")
}
