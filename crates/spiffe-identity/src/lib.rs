//! The SPIFFE identity of a workload: SVIDs from the Workload API, and the SPIFFE IDs in JWTs and certificates from
//! files.
//!
//! A SPIFFE ID is `spiffe://<trust domain>/<path>`. An SVID is a document that proves a SPIFFE ID: a JWT for one
//! audience, or an X.509 certificate with its private key. The SPIFFE server, usually SPIRE, runs an agent on each
//! node, and the agent issues SVIDs to workloads over a unix socket: the Workload API.
//!
//! This crate depends neither on Vault nor on the daemon. It verifies no signatures: Vault does.
//!
//! Sources: the specifications SPIFFE-ID, JWT-SVID, X509-SVID and `SPIFFE_Workload_API` in
//! <https://github.com/spiffe/spiffe/tree/main/standards>.

mod file;
mod svid;
mod trust_domain;
mod workload_api;

pub use file::{SvidFileError, common_name, spiffe_id_of_certificate, spiffe_id_of_jwt};
pub use spiffe::{SpiffeId, SpiffeIdError, TrustDomain};
pub use svid::{JwtSvid, X509Svid};
pub use trust_domain::{ForeignTrustDomain, check_trust_domain};
pub use workload_api::{DEFAULT_TIMEOUT, FetchError, SocketAddressError, WorkloadApi};
