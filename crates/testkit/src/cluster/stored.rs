//! Values as kube-apiserver stores them in etcd.

use std::collections::HashMap;

/// A value in etcd.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stored(pub Vec<u8>);

/// Source: k8s.io/apiserver `pkg/storage/value/encrypt/envelope/kmsv2/v2/api.proto`
#[derive(Clone, PartialEq, prost::Message)]
pub struct EncryptedObject {
    #[prost(bytes = "vec", tag = "1")]
    pub encrypted_data: Vec<u8>,
    #[prost(string, tag = "2")]
    pub key_id: String,
    /// The DEK seed, encrypted by a plugin.
    #[prost(bytes = "vec", tag = "3")]
    pub encrypted_dek_source: Vec<u8>,
    #[prost(map = "string, bytes", tag = "4")]
    pub annotations: HashMap<String, Vec<u8>>,
    #[prost(int32, tag = "5")]
    pub dek_source_type: i32,
}

impl Stored {
    /// The prefix that names the provider, such as `k8s:enc:kms:v2:transit:`. Empty for a plain value.
    pub fn prefix(&self) -> String {
        if !self.0.starts_with(b"k8s:enc:") {
            return String::new();
        }
        let end = self.0.iter().enumerate().filter(|(_, byte)| **byte == b':').nth(4).unwrap().0;
        String::from_utf8(self.0[..=end].to_vec()).unwrap()
    }

    /// The object that the KMS v2 provider has written.
    ///
    /// # Panics
    /// If another provider has written it.
    pub fn object(&self) -> EncryptedObject {
        let prefix = self.prefix();
        assert!(prefix.starts_with("k8s:enc:kms:v2:"), "{prefix:?}");
        prost::Message::decode(&self.0[prefix.len()..]).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::Stored;

    #[test]
    fn the_prefix_ends_after_the_name() {
        assert_eq!(Stored(b"k8s:enc:kms:v2:a name:\x0a:rest".to_vec()).prefix(), "k8s:enc:kms:v2:a name:");
        assert_eq!(Stored(b"k8s\0\x0a".to_vec()).prefix(), "");
    }
}
