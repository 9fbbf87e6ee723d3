//! gRPC codes: the one for each error of Vault, and their names in metrics and logs.

use tonic::{Code, Status};
use transit_client::{ErrorKind, TransitError};

/// Returns the gRPC status for an error of a request to Vault.
pub(super) fn into_status(error: TransitError) -> Status {
    let code = match error.kind {
        ErrorKind::BadCiphertext => Code::InvalidArgument,
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorKind::Config | ErrorKind::Denied | ErrorKind::TokenInvalid => Code::PermissionDenied,
        ErrorKind::KeyNotFound | ErrorKind::VersionTooOld => Code::FailedPrecondition,
        ErrorKind::VersionUnavailable | ErrorKind::Unreachable => Code::Unavailable,
        ErrorKind::InvalidResponse | ErrorKind::BatchTooLarge => Code::Internal,
        ErrorKind::Throttled => Code::ResourceExhausted,
    };
    Status::new(code, error.message)
}

/// Returns the name of a code as grpc-go and the metrics of kube-apiserver spell it.
///
/// Source: `Code.String` in google.golang.org/grpc `codes/code_string.go`.
pub(super) fn code_label(code: Code) -> &'static str {
    match code {
        Code::Cancelled => "Canceled",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Internal => "Internal",
        Code::InvalidArgument => "InvalidArgument",
        Code::Ok => "OK",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::Unavailable => "Unavailable",
        // transit-kms answers with no other code.
        _ => "Other",
    }
}
