//! The gRPC services of the KMS APIs v2 and v1, with the limits and deadlines of their calls.

mod call_log;
mod concurrency_limit;
mod decrypt;
mod encrypt;
mod requests;
mod status_code;
pub mod v1;
pub mod v2;

#[cfg(test)]
mod tests;
