//! The path of a request, as messages name it.

use std::fmt;

/// The path of a request, with its namespace, as messages name it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestPath<'a> {
    /// `None` for the root namespace.
    pub(crate) namespace: Option<&'a str>,
    /// Without `/v1/`.
    pub(crate) path: &'a str,
}

impl RequestPath<'_> {
    /// What may be wrong with the namespace, as the end of a sentence.
    pub(super) fn namespace_hint(self) -> &'static str {
        match self.namespace {
            Some(_) => "; Vault Community Edition has no namespaces: leave vault.namespace out there",
            None => "; a token of a child namespace needs vault.namespace",
        }
    }
}

impl fmt::Display for RequestPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path)?;
        match self.namespace {
            Some(namespace) => write!(f, " in namespace `{namespace}`"),
            None => Ok(()),
        }
    }
}
