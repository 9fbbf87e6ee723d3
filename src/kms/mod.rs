//! The gRPC services of the KMS APIs, and the limits and deadlines of their calls.

mod concurrency_limit;
mod requests;
pub mod v1;
pub mod v2;

#[cfg(test)]
mod tests;
