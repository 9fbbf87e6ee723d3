//! What this build of transit-kms is.

/// The version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The cargo features, in alphabetical order, and whether each is compiled in.
const FEATURES: [(&str, bool); 2] = [("aws", cfg!(feature = "aws")), ("spiffe", cfg!(feature = "spiffe"))];

/// The optional features that are compiled in, in alphabetical order with this separator, or `none`.
#[must_use]
pub fn features(separator: &str) -> String {
    list(&FEATURES, separator)
}

fn list(features: &[(&str, bool)], separator: &str) -> String {
    let compiled_in: Vec<_> = features.iter().filter(|(_, is_in)| *is_in).map(|(name, _)| *name).collect();
    if compiled_in.is_empty() { "none".to_owned() } else { compiled_in.join(separator) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_listed_or_none() {
        assert_eq!(list(&[("aws", true), ("spiffe", true)], ", "), "aws, spiffe");
        assert_eq!(list(&[("aws", false), ("spiffe", true)], ","), "spiffe");
        assert_eq!(list(&[("aws", false), ("spiffe", false)], ","), "none");
        assert!(FEATURES.is_sorted());
    }
}
