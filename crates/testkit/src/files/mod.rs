//! Files and folders.
//!
//! - [`temp_dir`]: a folder for one test; [`process_dir`]: a folder for this process.
//! - [`small_disk`]: a small file system, for tests of a full disk.
//! - [`repository`]: the files of this repository and its compiled programs.

pub mod process_dir;
pub mod repository;
pub mod small_disk;
pub mod temp_dir;
