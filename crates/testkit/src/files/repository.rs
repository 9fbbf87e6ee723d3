//! The files of this repository, its target folder and its compiled programs.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The root of the repository, without a slash at the end.
pub const ROOT: &str = {
    let package = env!("CARGO_MANIFEST_DIR");
    package.split_at(package.len() - "/crates/testkit".len()).0
};

/// A file or folder of the repository, by its path from the root.
pub fn path(from_root: &str) -> PathBuf {
    Path::new(ROOT).join(from_root)
}

/// The folder with the programs of the profile that the tests are compiled with, such as `target/debug`.
fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    // Cargo puts the programs of tests and benchmarks into the folder `deps`.
    PROGRAMS.get_or_init(|| env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned())
}

/// A folder below the target folder for the files of tests. All runs in this repository share it.
pub fn shared_folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = programs().parent().unwrap().join("tmp");
        std::fs::create_dir_all(&folder).unwrap();
        folder
    })
}

/// The daemon.
pub fn daemon() -> &'static str {
    static DAEMON: OnceLock<String> = OnceLock::new();
    DAEMON.get_or_init(|| built("transit-kms"))
}

/// The operator's program.
pub fn kmsctl() -> &'static str {
    static KMSCTL: OnceLock<String> = OnceLock::new();
    KMSCTL.get_or_init(|| built("transit-kmsctl"))
}

/// The program of a package, compiled as it is shipped: `cargo build -p` gives its dependencies no feature that
/// only tests, or other packages, ask for. Without cargo, as in scripts/test-node, it must have been compiled before.
///
/// # Panics
/// If it does not compile, or does not exist.
#[expect(clippy::disallowed_methods, reason = "cargo and rustc need the environment of the user")]
fn built(package: &str) -> String {
    if let Some(cargo) = env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--locked", "--package", package]).current_dir(ROOT);
        if programs().ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "{package} does not compile");
    }
    let program = programs().join(package);
    assert!(program.is_file(), "{} is missing: run cargo build -p {package}", program.display());
    program.into_os_string().into_string().unwrap()
}
