//! The login of an EC2 instance, by its identity document.

use zeroize::Zeroizing;

use crate::{AwsIdentity, AwsIdentityError, LoginFields, MetadataError, Nonce, metadata::Metadata};

/// Which signed form of the identity document Vault gets. Vault takes both in its field `pkcs7`.
///
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-identity-documents.html>
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum DocumentSignature {
    /// PKCS #7 with a DSA signature, as Vault's own client sends it.
    #[default]
    Pkcs7,
    /// PKCS #7 with an RSA signature.
    Rsa2048,
}

impl DocumentSignature {
    fn path(self) -> &'static str {
        match self {
            Self::Pkcs7 => "/latest/dynamic/instance-identity/pkcs7",
            Self::Rsa2048 => "/latest/dynamic/instance-identity/rsa2048",
        }
    }
}

impl AwsIdentity {
    /// Returns the fields of a login with the type `ec2`: `role`, `pkcs7` and `nonce`.
    ///
    /// Vault keeps the nonce of the first login of an instance, and refuses each later login without it.
    ///
    /// # Errors
    /// If the metadata service cannot be used.
    pub async fn ec2_login(
        &self,
        role: &str,
        nonce: &Nonce,
        signature: DocumentSignature,
    ) -> Result<LoginFields, AwsIdentityError> {
        let document = self.document(signature.path()).await.map_err(AwsIdentityError::IdentityDocument)?;
        let nonce = Zeroizing::new(nonce.expose().to_owned());
        let fields =
            vec![("role", Zeroizing::new(role.into())), ("pkcs7", document), ("nonce", nonce.clone())];
        Ok(LoginFields::new(fields, vec![nonce]))
    }

    /// The signed document in base64, without its line breaks.
    async fn document(&self, path: &str) -> Result<Zeroizing<String>, MetadataError> {
        let answer = Metadata::open(&self.http, &self.environment).await?.get(path).await?;
        let mut document = Zeroizing::new(String::with_capacity(answer.len()));
        document
            .extend(answer.iter().filter(|byte| !byte.is_ascii_whitespace()).map(|byte| char::from(*byte)));
        let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
        if document.is_empty() || !document.bytes().all(is_base64) {
            return Err(MetadataError::Answer { expected: "a document in base64", path: path.into() });
        }
        Ok(document)
    }
}
