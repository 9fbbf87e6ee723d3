//! The architecture of ARCHITECTURE.md, held by tests: which module may import which, which crates the daemon
//! may contain, and how long a file may be.

#[cfg(test)]
mod dependencies;
#[cfg(test)]
mod file_length;
#[cfg(test)]
mod imports;
