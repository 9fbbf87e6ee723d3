//! Keeps secrets in memory: no core dumps, no swap, no panic messages in the log. Also raises the limit
//! of open files.
//!
//! A step that the operating system refuses is logged, and the others are still tried. It is not fatal:
//! without a plugin, the API server could not read its Secrets.

use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit},
    thread::{CapabilitySet, capabilities},
};
use tracing::{debug, error, info, warn};

/// Hardens this process until it exits.
pub(crate) fn harden() {
    quiet_panics();
    if let Err(error) = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }) {
        warn!(%error, "cannot disable core dumps");
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        warn!(%error, "cannot make the process undumpable");
    }
    lock_memory();
    raise_descriptor_limit();
}

/// Logs the location of a panic only: its message may contain secrets.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        error!(location, "a panic: this is a bug, please report it");
    }));
}

/// Raises the soft limit to the hard limit. The usual soft limit of 1024 exists for programs that use
/// `select(2)`.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        debug!(%error, "cannot raise the limit of open files");
    }
}

/// Locks memory when it is first used, unless there is a limit on locked memory.
///
/// With a limit, a later allocation could fail and abort the process. In that case the operator should
/// encrypt or disable swap, which kubelet requires by default.
fn lock_memory() {
    let unlimited = getrlimit(Resource::Memlock).current.is_none();
    let capable = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    if !unlimited && !capable {
        info!("memory is not locked: grant CAP_IPC_LOCK, set LimitMEMLOCK=infinity, or disable swap");
        return;
    }
    match mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT) {
        Ok(()) => debug!("memory is locked"),
        Err(error) => warn!(%error, "cannot lock memory; secrets may be swapped out"),
    }
}
