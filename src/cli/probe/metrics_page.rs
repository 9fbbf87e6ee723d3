//! What kube-apiserver's `/metrics` tells of its KMS v2 plugins.
//!
//! It notes when a plugin last answered its Status, by the hash of the key_id, and counts its calls to each.
//! Nothing at all is noted by one without plugins, and neither by a page that is not kube-apiserver's, or that
//! is cut off; so the page must show that it is whole.
//!
//! Source: `k8s.io/apiserver`, `pkg/storage/value/encrypt/envelope/metrics/metrics.go`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

const NOTED: &str = "apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds{";
const CALLED: &str = "apiserver_envelope_encryption_kms_operations_latency_seconds_count{";
/// Series that every kube-apiserver has. The page is in the order of names, so they stand behind those above.
const BEHIND: [&str; 2] = ["kubernetes_build_info{", "process_start_time_seconds "];
const NOT_METRICS: &str = "what it answers is no metrics of a kube-apiserver, or not all of them";
const UNREADABLE: &str = "a line about its plugins cannot be read";

/// What kube-apiserver noted of a plugin.
#[derive(Debug, PartialEq)]
pub(super) struct Note {
    /// By its own clock, since 1970.
    pub(super) at: Duration,
    pub(super) key_id_hash: String,
    pub(super) provider: String,
}

/// All of it.
#[derive(Debug, PartialEq)]
pub(super) struct Page {
    /// Providers that were called since its start, with or without an answer.
    pub(super) called: BTreeSet<String>,
    pub(super) notes: Vec<Note>,
    /// When this was said, by the same clock.
    pub(super) now: Duration,
}

/// Reads a page line by line.
#[derive(Default)]
pub(super) struct PageReader {
    behind: usize,
    called: BTreeSet<String>,
    notes: Vec<Note>,
}

impl PageReader {
    pub(super) fn line(&mut self, line: &str) -> Result<(), &'static str> {
        if BEHIND.get(self.behind).is_some_and(|next| line.starts_with(next)) {
            self.behind += 1;
        } else if let Some(rest) = line.strip_prefix(NOTED) {
            self.notes.push(note(rest).ok_or(UNREADABLE)?);
        } else if let Some(rest) = line.strip_prefix(CALLED) {
            let (mut labels, _) = labels(rest).ok_or(UNREADABLE)?;
            self.called.insert(labels.remove("provider_name").ok_or(UNREADABLE)?);
        } else {
            return Ok(());
        }
        // What comes behind the end was not in order: then the end says nothing.
        if line.starts_with("apiserver_") && self.behind > 0 { Err(NOT_METRICS) } else { Ok(()) }
    }

    pub(super) fn finish(self, now: Duration) -> Result<Page, &'static str> {
        if self.behind < BEHIND.len() {
            return Err(NOT_METRICS);
        }
        Ok(Page { called: self.called, notes: self.notes, now })
    }
}

fn note(rest: &str) -> Option<Note> {
    let (mut labels, value) = labels(rest)?;
    Some(Note {
        at: Duration::try_from_secs_f64(value.split_whitespace().next()?.parse().ok()?).ok()?,
        key_id_hash: labels.remove("key_id_hash")?,
        provider: labels.remove("provider_name")?,
    })
}

/// The labels behind a `{`, and what follows on the `}`.
fn labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        if let Some(behind) = rest.strip_prefix('}') {
            return Some((labels, behind));
        }
        let (name, behind) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = behind.chars();
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

/// The time of a `Date` header, since 1970: RFC 9110, section 5.6.7, in the one form that is to be sent.
pub(super) fn http_date(text: &str) -> Option<Duration> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_weekday, date) = text.split_once(", ")?;
    let parts: Vec<&str> = date.split(' ').collect();
    let [day, month, year, time, "GMT"] = parts.as_slice() else { return None };
    let month = MONTHS.iter().position(|name| name == month)? + 1;
    let time: Vec<&str> = time.split(':').collect();
    let [hours, minutes, seconds] = time.as_slice() else { return None };
    // humantime knows how long months are.
    let date = format!("{year}-{month:02}-{day}T{hours}:{minutes}:{seconds}Z");
    let date = humantime::parse_rfc3339(&date).ok()?;
    date.duration_since(std::time::UNIX_EPOCH).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Result<Page, &'static str> {
        let mut page = PageReader::default();
        lines.iter().try_for_each(|line| page.line(line))?;
        page.finish(Duration::from_secs(9))
    }

    const END: [&str; 2] = ["kubernetes_build_info{major=\"1\"} 1", "process_start_time_seconds 1.7e+09"];

    fn whole(lines: &[&str]) -> Result<Page, &'static str> {
        read(&[lines, &END].concat())
    }

    #[test]
    fn notes_and_calls_are_read_and_nothing_from_other_lines() {
        let noted = format!(
            "{NOTED}apiserver_id_hash=\"sha256:1\",key_id_hash=\"sha256:2\",provider_name=\"a\\\"}}b\"}} 1.76e+09"
        );
        let called = format!(
            "{CALLED}grpc_status_code=\"Unavailable\",method_name=\"/v2\",provider_name=\"other\"}} 7"
        );
        let page = whole(&["# HELP x", &noted, &called, "", "x{key_id_hash=\"sha256:2\"} 1"]).unwrap();
        let at = Duration::from_secs(1_760_000_000);
        let note = Note { at, key_id_hash: "sha256:2".into(), provider: "a\"}b".into() };
        let called = BTreeSet::from(["other".to_owned()]);
        assert_eq!(page, Page { called, notes: vec![note], now: Duration::from_secs(9) });
    }

    #[test]
    fn what_is_not_whole_or_cannot_be_read_is_an_error() {
        assert!(whole(&[]).is_ok());
        let noted = format!("{NOTED}key_id_hash=\"a\",provider_name=\"b\"}} 1");
        assert_eq!(read(&[&noted]), Err(NOT_METRICS));
        assert_eq!(read(&["<html>please log in</html>"]), Err(NOT_METRICS));
        assert_eq!(read(&[END[0]]), Err(NOT_METRICS));
        assert_eq!(read(&[END[1], END[0]]), Err(NOT_METRICS));
        assert_eq!(read(&[END[0], END[1], &noted]), Err(NOT_METRICS));
        for value in ["soon", "NaN", "-1", "+Inf", ""] {
            assert_eq!(
                whole(&[&format!("{NOTED}key_id_hash=\"a\",provider_name=\"b\"}} {value}")]),
                Err(UNREADABLE)
            );
        }
        for labels in
            ["key_id_hash=\"a\"} 1", "key_id_hash=\"a\",provider_name=\"b", "} 1", "provider_name=b} 1"]
        {
            assert_eq!(whole(&[&format!("{NOTED}{labels}")]), Err(UNREADABLE), "{labels}");
        }
        assert_eq!(whole(&[&format!("{CALLED}method_name=\"a\"}} 1")]), Err(UNREADABLE));
    }

    #[test]
    fn dates_are_read_in_their_one_form() {
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
