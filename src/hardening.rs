//! Keeps what is in memory in memory: no core dumps, no swap, no words of a panic. And
//! takes the descriptors that the system lets us have.
//!
//! Every step is tried on its own, and one that the system refuses is told, not fatal:
//! a provider without it is better than none.

use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit},
    thread::{CapabilitySet, capabilities},
};
use tracing::{debug, error, info, warn};

/// Hardens this process for the rest of its life.
pub(crate) fn harden() {
    quiet_panics();
    if let Err(error) = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }) {
        warn!(%error, "core dumps cannot be switched off");
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        warn!(%error, "the process cannot be made undumpable");
    }
    lock_memory();
    raise_descriptor_limit();
}

/// A panic's message may hold what must not be logged; where it happened does not.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        error!(place, "a panic: this is a bug, please report it");
    }));
}

/// The usual soft limit of 1024 is one for programs that still use `select(2)`.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        debug!(%error, "the limit of open files stays as it is");
    }
}

/// Locks memory as it comes into use, if there is no limit to hit.
///
/// Under a limit, a later allocation would fail and end the process: then it is better
/// left to the operator to encrypt swap or switch it off, as kubelet asks for anyway.
fn lock_memory() {
    let unlimited = getrlimit(Resource::Memlock).current.is_none();
    let capable = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    if !unlimited && !capable {
        info!("memory is not locked: give CAP_IPC_LOCK or LimitMEMLOCK=infinity, or have no swap");
        return;
    }
    match mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT) {
        Ok(()) => debug!("memory is locked"),
        Err(error) => warn!(%error, "memory cannot be locked against swapping"),
    }
}
