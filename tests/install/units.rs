//! The systemd units, as far as they can be tried without systemd.
