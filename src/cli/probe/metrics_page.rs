//! Reads the metrics of kube-apiserver about its KMS v2 plugins.
//!
//! kube-apiserver exports when a plugin last answered Status, by the hash of the key_id, and counts its calls of each
//! plugin. An API server without plugins has no such series. A page of another program and a truncated page have none
//! either, so the page must prove that it is complete.
//!
//! Source: `k8s.io/apiserver`, `pkg/storage/value/encrypt/envelope/metrics/metrics.go`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

const STATUS_TIMES: &str = "apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds{";
const CALLS: &str = "apiserver_envelope_encryption_kms_operations_latency_seconds_count{";
/// Series that every kube-apiserver has. The page is sorted by name, so they follow those above.
const END_MARKERS: [&str; 2] = ["kubernetes_build_info{", "process_start_time_seconds "];
const NOT_METRICS: &str = "the answer is not the metrics of a kube-apiserver, or is incomplete";
const UNREADABLE: &str = "a line about its plugins cannot be parsed";

/// The last answer of a plugin to Status with this key_id.
#[derive(Debug, PartialEq)]
pub(super) struct RecordedStatus {
    /// The time since 1970, by the clock of the API server.
    pub(super) at: Duration,
    pub(super) key_id_hash: String,
    pub(super) provider: String,
}

/// The metrics of one API server about its plugins.
#[derive(Debug, PartialEq)]
pub(super) struct PluginMetrics {
    pub(super) answers: Vec<RecordedStatus>,
    /// The providers that were called since the API server started, with or without an answer.
    pub(super) called: BTreeSet<String>,
    /// The time of this page, by the clock of the API server.
    pub(super) now: Duration,
}

/// Reads a page line by line.
#[derive(Default)]
pub(super) struct PageReader {
    answers: Vec<RecordedStatus>,
    called: BTreeSet<String>,
    /// How many of the [`END_MARKERS`] were read.
    end_markers: usize,
}

impl PageReader {
    pub(super) fn line(&mut self, line: &str) -> Result<(), &'static str> {
        if END_MARKERS.get(self.end_markers).is_some_and(|next| line.starts_with(next)) {
            self.end_markers += 1;
        } else if let Some(rest) = line.strip_prefix(STATUS_TIMES) {
            self.answers.push(status_answer(rest).ok_or(UNREADABLE)?);
        } else if let Some(rest) = line.strip_prefix(CALLS) {
            let (mut labels, _) = labels(rest).ok_or(UNREADABLE)?;
            self.called.insert(labels.remove("provider_name").ok_or(UNREADABLE)?);
        } else {
            return Ok(());
        }
        // A series after an end marker shows that the page is not sorted, so the markers prove nothing.
        if line.starts_with("apiserver_") && self.end_markers > 0 { Err(NOT_METRICS) } else { Ok(()) }
    }

    pub(super) fn finish(self, now: Duration) -> Result<PluginMetrics, &'static str> {
        if self.end_markers < END_MARKERS.len() {
            return Err(NOT_METRICS);
        }
        Ok(PluginMetrics { answers: self.answers, called: self.called, now })
    }
}

fn status_answer(rest: &str) -> Option<RecordedStatus> {
    let (mut labels, value) = labels(rest)?;
    Some(RecordedStatus {
        at: Duration::try_from_secs_f64(value.split_whitespace().next()?.parse().ok()?).ok()?,
        key_id_hash: labels.remove("key_id_hash")?,
        provider: labels.remove("provider_name")?,
    })
}

/// Parses the labels after a `{`. Returns them and the text after the `}`.
fn labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (name, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = after.chars();
        loop {
            match chars.next()? {
                '"' => break,
                '\\' => match chars.next()? {
                    'n' => value.push('\n'),
                    char => value.push(char),
                },
                char => value.push(char),
            }
        }
        labels.insert(name.to_owned(), value);
        rest = chars.as_str();
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

/// Parses the time of a `Date` header, since 1970, in the form that servers must send (RFC 9110, section 5.6.7).
pub(super) fn http_date(text: &str) -> Option<Duration> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_weekday, date) = text.split_once(", ")?;
    let parts: Vec<&str> = date.split(' ').collect();
    let [day, month, year, time, "GMT"] = parts.as_slice() else { return None };
    let month = MONTHS.iter().position(|name| name == month)? + 1;
    let time: Vec<&str> = time.split(':').collect();
    let [hours, minutes, seconds] = time.as_slice() else { return None };
    // humantime converts the calendar date.
    let date = format!("{year}-{month:02}-{day}T{hours}:{minutes}:{seconds}Z");
    let date = humantime::parse_rfc3339(&date).ok()?;
    date.duration_since(std::time::UNIX_EPOCH).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Result<PluginMetrics, &'static str> {
        let mut page = PageReader::default();
        lines.iter().try_for_each(|line| page.line(line))?;
        page.finish(Duration::from_secs(9))
    }

    const END: [&str; 2] = ["kubernetes_build_info{major=\"1\"} 1", "process_start_time_seconds 1.7e+09"];

    fn complete(lines: &[&str]) -> Result<PluginMetrics, &'static str> {
        read(&[lines, &END].concat())
    }

    #[test]
    fn answers_and_calls_are_read_and_other_lines_are_ignored() {
        let status_times = format!(
            "{STATUS_TIMES}apiserver_id_hash=\"sha256:1\",key_id_hash=\"sha256:2\",provider_name=\"a\\\"}}b\"}} 1.76e+09"
        );
        let called = format!(
            "{CALLS}grpc_status_code=\"Unavailable\",method_name=\"/v2\",provider_name=\"other\"}} 7"
        );
        let page =
            complete(&["# HELP x", &status_times, &called, "", "x{key_id_hash=\"sha256:2\"} 1"]).unwrap();
        let at = Duration::from_secs(1_760_000_000);
        let answer = RecordedStatus { at, key_id_hash: "sha256:2".into(), provider: "a\"}b".into() };
        let called = BTreeSet::from(["other".to_owned()]);
        assert_eq!(page, PluginMetrics { called, answers: vec![answer], now: Duration::from_secs(9) });
    }

    #[test]
    fn incomplete_and_invalid_pages_are_errors() {
        assert!(complete(&[]).is_ok());
        let status_times = format!("{STATUS_TIMES}key_id_hash=\"a\",provider_name=\"b\"}} 1");
        assert_eq!(read(&[&status_times]), Err(NOT_METRICS));
        assert_eq!(read(&["<html>please log in</html>"]), Err(NOT_METRICS));
        assert_eq!(read(&[END[0]]), Err(NOT_METRICS));
        assert_eq!(read(&[END[1], END[0]]), Err(NOT_METRICS));
        assert_eq!(read(&[END[0], END[1], &status_times]), Err(NOT_METRICS));
        for value in ["soon", "NaN", "-1", "+Inf", ""] {
            assert_eq!(
                complete(&[&format!("{STATUS_TIMES}key_id_hash=\"a\",provider_name=\"b\"}} {value}")]),
                Err(UNREADABLE)
            );
        }
        for labels in
            ["key_id_hash=\"a\"} 1", "key_id_hash=\"a\",provider_name=\"b", "} 1", "provider_name=b} 1"]
        {
            assert_eq!(complete(&[&format!("{STATUS_TIMES}{labels}")]), Err(UNREADABLE), "{labels}");
        }
        assert_eq!(complete(&[&format!("{CALLS}method_name=\"a\"}} 1")]), Err(UNREADABLE));
    }

    #[test]
    fn only_the_preferred_date_format_is_accepted() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(784_111_777)));
        for bad in [
            "",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "Sun, 06 Nov 1994 08:49 GMT",
        ] {
            assert_eq!(http_date(bad), None, "{bad}");
        }
    }
}
