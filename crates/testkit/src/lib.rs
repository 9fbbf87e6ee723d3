//! Starts and stops the real parts that tests need: OpenBao or Vault, an agent, the daemon, a Kubernetes control plane.
//!
//! Each test starts its own parts. Dropping a value kills its process, and prints the end of its output if the test has
//! failed. Tests do not sleep: they wait with [`eventually`].
//!
//! ```no_run
//! # async fn test() {
//! use testkit::{RELOAD_TIMEOUT, TestEnv};
//!
//! // Starts an OpenBao server, and renders a config with a token.
//! let env = TestEnv::start().await;
//! // Starts a daemon with this config, waits until it is ready, and connects a KMS client.
//! let (daemon, caller) = env.ready(["--log-format", "json"]).await;
//! caller.round_trip().await;
//!
//! env.bao.seal().await;
//! caller.wait_health("Vault is sealed", RELOAD_TIMEOUT).await;
//! assert_eq!(daemon.admin("/readyz").await.0, 503);
//! # }
//! ```
//!
//! | module | starts |
//! | --- | --- |
//! | [`aws`] | the AWS auth method, and the services of AWS on the loopback |
//! | [`vault`] | OpenBao or Vault, a raft cluster of three, an agent, a proxy that injects faults |
//! | [`daemon`] | the daemon and other commands of the program; writes the config |
//! | [`kms`] | KMS clients and load |
//! | [`cluster`] | etcd and kube-apiserver, and clients of them |
//! | [`net`] | HTTP servers, proxies and links that a test can break; reserves ports |
//! | [`process`] | any other program |
//! | [`spiffe`] | an authority of SVIDs, and a Workload API that issues them |
//! | [`files`] | temporary folders and small file systems |

#![allow(missing_docs, reason = "short helpers of tests explain themselves by their names")]
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

pub mod aws;
pub mod cluster;
pub mod daemon;
pub mod files;
pub mod kms;
pub mod measurements;
pub mod net;
pub mod process;
pub mod spiffe;
pub mod vault;
mod wait;

pub use daemon::{
    cli, config_file,
    config_file::ConfigFile,
    process::{Daemon, DaemonOptions, Kms, connect, kms_client, unix_url},
    test_env::{RELOAD_TIMEOUT, TestEnv, health_checks, wait_for_session_after},
};
pub use files::{process_dir::process_dir, repository, small_disk::SmallDisk, temp_dir::temp_dir};
pub use kms::{
    caller::{Caller, version_of_ciphertext, version_of_key_id},
    calls,
    calls::TIMEOUT,
    gaps::Gaps,
    load::Load,
    raw,
    reconnect::{ReconnectingKms, reconnecting_client},
    report::{LoadReport, RequestRecorder},
};
pub use net::{authority, http, link::NetworkLink, port, port::closed_address};
pub use process::{cgroup, command, command::command, no_inotify::without_inotify};
pub use spiffe::{
    authority::{Identity, IssuedCertificate, SpiffeAuthority},
    vault_enterprise::{SpiffeAuthMethod, SpiffeAuthOptions},
    workload_api::{Conduct, WorkloadApiServer},
};
pub use vault::{
    agent::{Agent, AgentOptions, Login},
    binary::VaultBinary,
    fault_proxy::{Fault, FaultProxy},
    login,
    server::{Bao, BaoOptions, KEY, MOUNT, POLICY, policy},
    three_nodes::ThreeNodeVault,
};
pub use wait::{Outcome, eventually};

/// Whether the long versions of tests should run (`scripts/test --full`).
pub fn full() -> bool {
    std::env::var_os("TRANSIT_KMS_TEST_FULL").is_some_and(|asked| !asked.is_empty() && asked != "0")
}
