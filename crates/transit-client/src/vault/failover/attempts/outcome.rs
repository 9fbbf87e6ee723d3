//! What one exchange with a node means, before anything follows from it; pure.

use std::time::Duration;

use super::{
    super::classify::{Classified, Consequence, Processed, classify, is_answer},
    Parse,
};
use crate::{
    ErrorKind, TransitError,
    metrics::{RequestOutcome, RetryReason},
    operation::VaultOperation,
    vault::exchange::{ExchangeError, HttpRequest, HttpResponse},
};

/// What one exchange with a node means.
pub(super) enum ExchangeOutcome<T> {
    /// The connection broke before the answer was complete.
    Broken(TransitError),
    /// The deadline of the call passed.
    DeadlineExceeded(TransitError),
    /// The node cannot serve requests: it is ejected, for `retry_after` if it asked for that.
    NodeFailed {
        error: TransitError,
        processed: Processed,
        reason: RetryReason,
        retry_after: Option<Duration>,
    },
    /// The node is healthy, and cannot serve this request now.
    NotServed { error: TransitError, processed: Processed, reason: RetryReason },
    /// The node is healthy, and refuses the request in words that are recognised.
    Refused { error: TransitError, processed: Processed },
    /// The node did what was asked.
    Success(T),
    /// No node can be asked: the request cannot be sent.
    Unusable(TransitError),
}

impl<T> ExchangeOutcome<T> {
    /// The meaning of what came of an exchange of `request` for `operation`.
    pub(super) fn of(
        operation: VaultOperation,
        request: &HttpRequest,
        exchanged: Result<HttpResponse, ExchangeError>,
        parse: Parse<'_, T>,
    ) -> Self {
        let failed =
            |error, processed, reason| Self::NodeFailed { error, processed, reason, retry_after: None };
        let response = match exchanged {
            Ok(response) => response,
            Err(ExchangeError::Broken(error)) => return Self::Broken(error),
            Err(ExchangeError::Connect(error)) => return failed(error, Processed::No, RetryReason::Connect),
            Err(ExchangeError::DeadlineExceeded(error)) => return Self::DeadlineExceeded(error),
            Err(ExchangeError::ResponseTooLong(error)) => {
                return failed(error, Processed::Unknown, RetryReason::Unreachable);
            }
            Err(ExchangeError::Unusable(error)) => return Self::Unusable(error),
        };
        if is_answer(response.status, &response.body) {
            // A success that cannot be parsed is not Vault's.
            return parse(&response).map_or_else(
                |error| failed(error, Processed::Unknown, RetryReason::Unreachable),
                Self::Success,
            );
        }
        let Classified { consequence, error, processed } = classify(operation, request, &response);
        match consequence {
            Consequence::Eject => {
                let (reason, retry_after) = (RetryReason::Unreachable, response.retry_after);
                Self::NodeFailed { error, processed, reason, retry_after }
            }
            Consequence::Final => Self::Refused { error, processed },
            Consequence::Next => {
                let reason = match error.kind {
                    ErrorKind::VersionUnavailable => RetryReason::VersionUnavailable,
                    _ => RetryReason::Unreachable,
                };
                Self::NotServed { error, processed, reason }
            }
        }
    }

    /// The error that ends a call whose request is not sent again if Vault may have processed it; `None` if Vault
    /// certainly has not, or the outcome ends the call in any case.
    pub(super) fn without_replay(&self) -> Option<TransitError> {
        let (error, processed) = match self {
            Self::Success(_) | Self::Unusable(_) => return None,
            Self::Broken(error) | Self::DeadlineExceeded(error) => (error, Processed::Unknown),
            Self::NodeFailed { error, processed, .. }
            | Self::NotServed { error, processed, .. }
            | Self::Refused { error, processed } => (error, *processed),
        };
        let error = error.clone();
        match (processed, self) {
            (Processed::Unknown, _) => Some(error.after_possible_processing()),
            // The refusal is the result, even where that of a request that is sent again would be confirmed.
            (Processed::Yes, _) | (Processed::No, Self::Refused { .. }) => Some(error),
            (Processed::No, _) => None,
        }
    }

    /// As metrics count it.
    pub(super) fn metric(&self) -> RequestOutcome {
        match self {
            Self::Success(_) => RequestOutcome::Ok,
            Self::Broken(error)
            | Self::DeadlineExceeded(error)
            | Self::NodeFailed { error, .. }
            | Self::NotServed { error, .. }
            | Self::Refused { error, .. }
            | Self::Unusable(error) => RequestOutcome::Failed(error.kind),
        }
    }
}
