//! A client of the Transit engine of HashiCorp Vault and OpenBao, with failover between nodes.
//!
//! The trait [`Transit`] is what callers need of an engine. [`vault::Session`] implements it: one token on a
//! [`vault::Pool`] of nodes, with retries, hedging and health checks. [`vault::lease`] looks the token up and
//! renews it. The other modules hold the types that both sides share: keys, key_ids, ciphertexts, endpoints,
//! tokens and errors.
//!
//! The crate does not depend on the KMS API or on the config file of the daemon, so that the daemon and the
//! operator's program can share it.
//!
//! # Example
//!
//! This program encrypts and decrypts with the newest version of the key `kms`:
//!
//! ```no_run
//! use std::{sync::Arc, time::Duration};
//!
//! use prometheus::Registry;
//! use tokio::time::Instant;
//! use transit_client::{
//!     Transit, TransitError,
//!     endpoint::{Address, Endpoint, TlsMaterial},
//!     key::{KeyName, KeyNames, KeyRef, MountPath, Namespace},
//!     metrics::ClientMetrics,
//!     token::Token,
//!     transit::Call,
//!     vault::{Access, Pool, RequestAuth, Session},
//! };
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let endpoint = Endpoint {
//!     addresses: vec![Address::new("https://vault.example.org:8200", false)?],
//!     connect_timeout: Duration::from_secs(3),
//!     server_name: None,
//!     tls: TlsMaterial { ca: Some(std::fs::read("/etc/vault/ca.pem")?), ..TlsMaterial::default() },
//! };
//! let key = KeyRef::new(KeyName::new("kms")?, MountPath::default(), Namespace::default());
//! let access = Access {
//!     auth: RequestAuth::Token(Token::new(&std::fs::read_to_string("/run/vault/token")?)?),
//!     keys: KeyNames::new([key.clone()])?,
//!     namespace: Namespace::default(),
//! };
//!
//! let pool = Arc::new(Pool::new(&endpoint).await?);
//! let metrics = Arc::new(ClientMetrics::register(&Registry::new())?);
//! let session = Session::new(&access, pool, metrics)?;
//!
//! let call = || Call { deadline: Instant::now() + Duration::from_secs(3), uid: "example" };
//! let version = session.read_key(&key, call()).await?.latest;
//! let encrypted = session.encrypt(&key, version, b"secret", call()).await?;
//! let decrypted = session.decrypt(&key, &encrypted.ciphertext, call()).await?;
//! assert_eq!(decrypted.plaintext.as_slice(), b"secret");
//! # Ok(())
//! # }
//! ```

pub mod ciphertext;
pub mod endpoint;
pub mod error;
pub mod key;
pub mod key_id;
pub mod metrics;
pub mod operation;
pub mod rule;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod token;
pub mod transit;
pub mod vault;

pub use error::{ErrorKind, TransitError};
pub use transit::Transit;
