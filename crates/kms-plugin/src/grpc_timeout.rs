//! How long a caller waits for its answer, from the gRPC header `grpc-timeout`.

use std::time::Duration;

use http::HeaderMap;
use tonic::metadata::MetadataMap;

/// The timeout of a caller that sends none: the default of `kms.timeout` in kube-apiserver.
///
/// Source: `defaultTimeout` in k8s.io/apiserver `pkg/apis/apiserver/v1/defaults.go`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3);
/// A longer timeout is shortened to this.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// A call ends this much earlier than its caller gives up, so that the caller receives the reason.
const MAX_REPLY_MARGIN: Duration = Duration::from_millis(100);

/// Returns how long a call may take: the requested timeout less a margin for the reply.
#[must_use]
pub fn call_timeout(metadata: &MetadataMap) -> Duration {
    let requested = requested_timeout(metadata.as_ref());
    requested - MAX_REPLY_MARGIN.min(requested / 10)
}

/// Returns after which time the caller gives up.
///
/// A missing or malformed header counts as 3 s, and the longest timeout is 60 s.
#[must_use]
pub fn requested_timeout(headers: &HeaderMap) -> Duration {
    headers
        .get("grpc-timeout")
        .and_then(|value| value.to_str().ok())
        .and_then(parse)
        .unwrap_or(DEFAULT_TIMEOUT)
        .min(MAX_TIMEOUT)
}

/// Parses up to eight digits and a unit.
///
/// Source: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests>
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeout_for(value: &str) -> Duration {
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", value.parse().unwrap());
        call_timeout(&metadata)
    }

    #[test]
    fn a_call_ends_a_little_before_its_caller_gives_up() {
        assert_eq!(timeout_for("3S"), Duration::from_millis(2900));
        assert_eq!(timeout_for("500m"), Duration::from_millis(450));
        assert_eq!(timeout_for("0m"), Duration::ZERO);
        assert_eq!(timeout_for("2999999u"), Duration::from_micros(2_899_999));
        assert_eq!(call_timeout(&MetadataMap::new()), Duration::from_millis(2900));
    }

    #[test]
    fn a_malformed_timeout_counts_as_the_default_and_a_long_one_is_shortened() {
        for malformed in ["", "S", "3", "3s", "-3S", "123456789S", "3 S", "1.5S"] {
            assert_eq!(timeout_for(malformed), Duration::from_millis(2900), "{malformed}");
        }
        assert_eq!(timeout_for("99999999H"), Duration::from_millis(59_900));
    }
}
