//! The rules of sessions on a Transit engine in memory, without gRPC.

mod health;
mod verification;
mod versions;

use std::time::Duration;

use tokio::time::advance;
use transit_client::{
    ErrorKind, TransitError,
    key::{KeyName, KeyRef, MountPath, Namespace},
    testing::fake_transit::FakeKey,
};

use super::{
    health::StatusAnswer,
    keyring::KeyEntry,
    testing::{Model, SessionBench, pass, settle, verify_candidate},
    verification::{PreviousState, VerificationError},
};
