//! Quotes Vault's own words in messages, without tokens.

use error_text::one_line;

/// The errors in Vault's error body, on one line of bounded length. Messages with them go into logs and to
/// callers. Vault does not repeat tokens, but anything that looks like one is cut.
pub(super) fn quote(errors: &[String]) -> String {
    let line = one_line(&errors.join("; "));
    line.split(' ').map(without_token).collect::<Vec<_>>().join(" ")
}

/// Cuts a word where a token begins.
///
/// A token begins with `hvs.`, `hvb.` or `hvr.`, or, before Vault 1.10 and in OpenBao, with one of the letters
/// s, b and r, a dot and at least 16 more characters.
fn without_token(word: &str) -> String {
    const MIN_LENGTH: usize = 16;
    let starts = word.char_indices().map(|(at, _)| at);
    let token = starts.filter_map(|at| word.split_at_checked(at)).find(|(before, rest)| {
        let begins_here = !before.ends_with(|c: char| c.is_alphanumeric());
        let is_long = |rest: &str| {
            rest.chars().take_while(|c| c.is_alphanumeric() || "-_.".contains(*c)).count() >= MIN_LENGTH
        };
        begins_here
            && (["hvs.", "hvb.", "hvr."].iter().any(|prefix| rest.starts_with(prefix))
                || ["s.", "b.", "r."].iter().any(|prefix| rest.strip_prefix(prefix).is_some_and(is_long)))
    });
    match token {
        Some((before, _)) => format!("{before}***"),
        None => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_token_is_not_quoted() {
        let token = "CAESIJ0123456789abcdef";
        for words in [
            format!("bad token hvs.{token} here"),
            format!("bad token \"hvb.{token}\""),
            format!("token=s.{token}"),
            format!("(b.{token})"),
            format!("{token}:r.{token}"),
        ] {
            let quoted = quote(std::slice::from_ref(&words));
            assert!(quoted.contains("***") && !quoted.contains(&format!(".{token}")), "{quoted}");
        }
        for kept in [
            "no handler for route \"transit/keys/kms\". route entry not found.",
            "vault.example.org",
            "s.bogus",
        ] {
            assert_eq!(quote(&[kept.to_owned()]), kept);
        }
    }
}
