//! Runs a program where inotify is exhausted.

use crate::process::command::command;

/// A wrapper for a daemon, which then cannot create an inotify instance; see [`crate::DaemonOptions::wrapper`].
/// `None` where user namespaces are forbidden; in CI that is a failure.
pub fn without_inotify() -> Option<Vec<String>> {
    const NONE: &str = r#"echo 0 > /proc/sys/user/max_inotify_instances && exec "$@""#;
    let wrapper = ["unshare", "--user", "--map-root-user", "sh", "-c", NONE, "sh"];
    let [unshare, arguments @ ..] = wrapper;
    if command(unshare).args(arguments).arg("true").status().is_ok_and(|status| status.success()) {
        return Some(wrapper.map(str::to_owned).into());
    }
    assert!(std::env::var_os("CI").is_none(), "CI must allow user namespaces");
    eprintln!("not tested, no user namespaces here: {}", wrapper.join(" "));
    None
}
