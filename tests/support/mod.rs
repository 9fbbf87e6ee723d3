//! What the tests stand on: real servers, real agents and the real daemon, one set a test.
//!
//! Everything here ends with the test that made it, by process id, and says what it printed if
//! that test failed. Nothing sleeps and hopes: tests wait with [`eventually`].

#![allow(dead_code, unused_imports, reason = "a face for all tests; each uses a part of it")]

mod agent;
pub(crate) mod authority;
mod caller;
pub(crate) mod calls;
pub(crate) mod cgroup;
pub(crate) mod command;
pub(crate) mod credentials;
pub(crate) mod daemon;
mod disk;
pub(crate) mod faults;
pub(crate) mod figures;
mod gaps;
pub(crate) mod http;
mod load;
mod no_inotify;
mod observed;
mod own_folder;
pub(crate) mod port;
pub(crate) mod process;
pub(crate) mod program;
pub(crate) mod raw;
mod redial;
pub(crate) mod rendered;
mod scratch;
mod seed;
mod server;
mod stage;
mod trio;
mod wait;
mod wire;

pub(crate) use agent::{Agent, AgentOptions, Login};
pub(crate) use caller::{Caller, version_of_ciphertext, version_of_key_id};
pub(crate) use calls::TIMEOUT;
pub(crate) use command::command;
pub(crate) use daemon::{Daemon, DaemonOptions, Kms, connect, kms_client, unix_url};
pub(crate) use disk::SmallDisk;
pub(crate) use faults::{Fault, FaultProxy};
pub(crate) use gaps::Gaps;
pub(crate) use load::Load;
pub(crate) use no_inotify::without_inotify;
pub(crate) use observed::{LoadReport, Observer};
pub(crate) use own_folder::own_folder;
pub(crate) use port::closed_address;
pub(crate) use redial::{LastingKms, lasting_client};
pub(crate) use rendered::Rendered;
pub(crate) use scratch::scratch;
pub(crate) use server::{Bao, BaoOptions, KEY, MOUNT, POLICY, Program, policy};
pub(crate) use stage::{Stage, TAKEN_WITHIN, probes, wait_for_session_after};
pub(crate) use trio::Trio;
pub(crate) use wait::{Verdict, eventually};
pub(crate) use wire::Wire;

/// Whether the long versions of tests are asked for (`scripts/test --full`).
pub(crate) fn full() -> bool {
    std::env::var_os("TRANSIT_KMS_TEST_FULL").is_some_and(|asked| !asked.is_empty() && asked != "0")
}
