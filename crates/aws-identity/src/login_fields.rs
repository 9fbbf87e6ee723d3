//! The fields of a login request to Vault.

use zeroize::Zeroizing;

/// The fields of a request to `auth/<mount>/login`. They have no `Debug`, and are wiped: a signed request is a
/// credential for 15 minutes, and a nonce is one permanently.
pub struct LoginFields {
    credential: Vec<Zeroizing<String>>,
    fields: Vec<(&'static str, Zeroizing<String>)>,
}

impl LoginFields {
    pub(crate) fn new(
        fields: Vec<(&'static str, Zeroizing<String>)>,
        credential: Vec<Zeroizing<String>>,
    ) -> Self {
        Self { credential, fields }
    }

    /// What tells this credential from another one: for `iam` the access key ID and the secret access key, for `ec2` the
    /// nonce. The fields are no help, because each signature differs. These values are secrets: hash them.
    pub fn credential(&self) -> impl Iterator<Item = &str> {
        self.credential.iter().map(|part| part.as_str())
    }

    /// The fields: names, and values as Vault expects them.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.fields.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// The body of the login request, in JSON.
    #[must_use]
    pub fn to_json(&self) -> Zeroizing<Vec<u8>> {
        // Enough for each byte to be escaped, so that the buffer does not grow: a copy that is left behind would not be
        // wiped.
        let capacity: usize = self.iter().map(|(name, value)| name.len() + 6 * value.len() + 8).sum();
        let mut body = Zeroizing::new(Vec::with_capacity(capacity + 2));
        for (name, value) in self.iter() {
            let separator = if body.is_empty() { b'{' } else { b',' };
            body.push(separator);
            body.extend_from_slice(format!("\"{name}\":").as_bytes());
            // Writing to a `Vec` does not fail.
            drop(serde_json::to_writer(&mut *body, value));
        }
        body.push(b'}');
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_json_and_its_buffer_does_not_grow() {
        let value = Zeroizing::new("\u{1}\"\\\u{e9}".repeat(50));
        let fields =
            LoginFields::new(vec![("role", Zeroizing::new("node".into())), ("nonce", value.clone())], vec![]);
        let body = fields.to_json();
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(json, serde_json::json!({"role": "node", "nonce": *value}));
        let capacity = fields.iter().map(|(name, value)| name.len() + 6 * value.len() + 8).sum::<usize>() + 2;
        assert!(body.len() <= capacity && body.capacity() == capacity);
    }
}
