//! Tests against real servers and the real binary; `support` starts and stops them.
//!
//! `cfg(test)` always holds here; written out, it lets clippy know these modules for tests.

#[cfg(test)]
mod candidates;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod path;
#[cfg(test)]
mod reload;
#[cfg(test)]
mod support;
#[cfg(test)]
mod words;
