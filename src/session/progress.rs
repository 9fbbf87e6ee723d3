//! Publishes what the verification of a candidate waits for.
//!
//! A verification takes seconds if an address does not answer. Before the first session, Status has no other
//! reason to give, so it names the address and the request.

use std::sync::{Arc, Mutex, PoisonError};

use transit_client::{ErrorKind, TransitError, endpoint::Address, operation::VaultOperation, vault};

use super::state::SessionPublisher;

/// Limits the length of the reason that Status gives.
const MAX_CAUSES: usize = 5;

/// The progress of one verification.
pub(super) struct Progress {
    addresses: String,
    publisher: Arc<SessionPublisher>,
    /// Only the first attempt with a config publishes its progress. Later ones would hide why that one failed.
    is_published: bool,
    steps: Mutex<Steps>,
}

#[derive(Default)]
struct Steps {
    /// Why nodes have not answered so far, without duplicates.
    causes: Vec<String>,
    /// The request that waits for an answer. `None` while names are resolved.
    operation: Option<VaultOperation>,
}

impl Progress {
    pub(super) fn new<'a>(
        publisher: Arc<SessionPublisher>,
        addresses: impl IntoIterator<Item = &'a Address>,
        is_published: bool,
    ) -> Arc<Self> {
        let addresses: Vec<_> = addresses.into_iter().map(ToString::to_string).collect();
        let progress =
            Self { addresses: addresses.join(", "), publisher, is_published, steps: Mutex::default() };
        progress.step(|_| ());
        Arc::new(progress)
    }

    /// Adds to a timeout what the verification was waiting for.
    pub(super) fn explain(&self, error: TransitError) -> TransitError {
        if error.kind != ErrorKind::DeadlineExceeded {
            return error;
        }
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        TransitError::new(error.kind, format!("{} ({})", error.message, self.waiting_for(&steps)))
    }

    fn waiting_for(&self, steps: &Steps) -> String {
        match steps.operation {
            Some(operation) => format!("waiting for {} to answer {}", self.addresses, operation.name()),
            None => format!("waiting for the IP addresses of {}", self.addresses),
        }
    }

    fn step(&self, step: impl FnOnce(&mut Steps)) {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        step(&mut steps);
        if self.is_published {
            let mut text = format!("verifying the config: {}", self.waiting_for(&steps));
            if !steps.causes.is_empty() {
                text.push_str("; so far: ");
                text.push_str(&steps.causes.join("; "));
            }
            self.publisher.set_progress(text);
        }
    }
}

impl vault::RequestObserver for Progress {
    fn request_started(&self, operation: VaultOperation) {
        self.step(|steps| steps.operation = Some(operation));
    }

    fn node_failed(&self, error: &TransitError) {
        self.step(|steps| {
            if steps.causes.len() < MAX_CAUSES && !steps.causes.contains(&error.message) {
                steps.causes.push(error.message.clone());
            }
        });
    }
}
