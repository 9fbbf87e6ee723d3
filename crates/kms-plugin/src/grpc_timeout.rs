//! By when a caller wants its answer.

use std::time::Duration;

use http::HeaderMap;
use tonic::metadata::MetadataMap;

/// What a caller has that does not say: kube-apiserver's default `kms.timeout`.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(3);
/// Longer than this nobody waits, whatever the caller says.
const LONGEST_PATIENCE: Duration = Duration::from_secs(60);
/// We answer by this much earlier than the caller gives up, so that it hears the reason.
const MOST_HEADROOM: Duration = Duration::from_millis(100);

/// How long a call may take: what `grpc-timeout` says, less a little for the way back.
#[must_use]
pub fn patience(metadata: &MetadataMap) -> Duration {
    let asked = asked(metadata.as_ref());
    asked - MOST_HEADROOM.min(asked / 10)
}

/// After how long the caller no longer listens.
#[must_use]
pub fn asked(headers: &HeaderMap) -> Duration {
    headers
        .get("grpc-timeout")
        .and_then(|value| value.to_str().ok())
        .and_then(parse)
        .unwrap_or(DEFAULT_PATIENCE)
        .min(LONGEST_PATIENCE)
}

/// Reads up to eight digits and a unit.
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

    fn patience_of(value: &str) -> Duration {
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", value.parse().unwrap());
        patience(&metadata)
    }

    #[test]
    fn a_little_less_than_the_caller_has() {
        assert_eq!(patience_of("3S"), Duration::from_millis(2900));
        assert_eq!(patience_of("500m"), Duration::from_millis(450));
        assert_eq!(patience_of("0m"), Duration::ZERO);
        assert_eq!(patience_of("2999999u"), Duration::from_micros(2_899_999));
        assert_eq!(patience(&MetadataMap::new()), Duration::from_millis(2900));
    }

    #[test]
    fn nonsense_counts_as_unsaid_and_for_ever_is_too_long() {
        for nonsense in ["", "S", "3", "3s", "-3S", "123456789S", "3 S", "1.5S"] {
            assert_eq!(patience_of(nonsense), Duration::from_millis(2900), "{nonsense}");
        }
        assert_eq!(patience_of("99999999H"), Duration::from_millis(59_900));
    }
}
