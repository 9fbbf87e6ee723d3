//! The architecture of ARCHITECTURE.md, held by tests: which module may import which, which crates the daemon
//! may contain, how long a file may be, and that no two types have the same name.

#[cfg(test)]
mod dependencies;
#[cfg(test)]
mod file_length;
#[cfg(test)]
mod imports;
#[cfg(test)]
mod names;
