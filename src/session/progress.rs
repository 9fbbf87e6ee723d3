//! What a candidate waits for, told while it waits.
//!
//! Verifying a config takes seconds if an address is silent. PreviousState the first session, Status has
//! nothing else to say, so it says which address and which call it is.

use std::sync::{Arc, Mutex, PoisonError};

use transit_client::{
    ErrorKind, TransitError,
    endpoint::Address,
    vault::{self, Operation},
};

use super::state::SessionPublisher;

/// Status is to stay readable.
const MOST_CAUSES: usize = 5;

/// The progress of one verification.
pub(super) struct Progress {
    addresses: String,
    publisher: Arc<SessionPublisher>,
    /// The first verification of a config tells; later ones would only hide why that one failed.
    tells: bool,
    steps: Mutex<Steps>,
}

#[derive(Default)]
struct Steps {
    /// Why nodes did not answer so far, each once.
    causes: Vec<String>,
    /// The call that is being waited for; before the first, the addresses of names.
    operation: Option<Operation>,
}

impl Progress {
    pub(super) fn new<'a>(
        publisher: Arc<SessionPublisher>,
        addresses: impl IntoIterator<Item = &'a Address>,
        tells: bool,
    ) -> Arc<Self> {
        let addresses: Vec<_> = addresses.into_iter().map(ToString::to_string).collect();
        let progress = Self { addresses: addresses.join(", "), publisher, tells, steps: Mutex::default() };
        progress.step(|_| ());
        Arc::new(progress)
    }

    /// An error of this verification, with the call that got no answer.
    pub(super) fn explained(&self, error: TransitError) -> TransitError {
        if error.kind != ErrorKind::DeadlineExceeded {
            return error;
        }
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        TransitError::new(error.kind, format!("{} ({})", error.message, self.waiting_for(&steps)))
    }

    /// What is being waited for, in words.
    fn waiting_for(&self, steps: &Steps) -> String {
        match steps.operation {
            Some(operation) => format!("waiting for {} to answer {}", self.addresses, operation.name()),
            None => format!("waiting for the IP addresses of {}", self.addresses),
        }
    }

    fn step(&self, step: impl FnOnce(&mut Steps)) {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        step(&mut steps);
        if self.tells {
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
    fn request_started(&self, operation: Operation) {
        self.step(|steps| steps.operation = Some(operation));
    }

    fn node_failed(&self, error: &TransitError) {
        self.step(|steps| {
            if steps.causes.len() < MOST_CAUSES && !steps.causes.contains(&error.message) {
                steps.causes.push(error.message.clone());
            }
        });
    }
}
