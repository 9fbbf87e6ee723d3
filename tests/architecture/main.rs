//! The architecture of ARCHITECTURE.md, held by tests: which module may import which, and which crates the daemon
//! may contain.

#[cfg(test)]
mod dependencies;
#[cfg(test)]
mod imports;
