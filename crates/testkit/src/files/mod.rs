//! Folders and file systems of a test, and the files of the repository.

pub mod process_dir;
pub mod repository;
pub mod small_disk;
pub mod temp_dir;
