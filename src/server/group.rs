//! The group of a socket, by name or number.

use std::{fs, io, str::FromStr};

/// A group, as `--socket-group` names it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Group(u32);

impl Group {
    /// Creates a group from its number.
    #[must_use]
    pub const fn from_gid(gid: u32) -> Self {
        Self(gid)
    }

    /// Returns its number.
    #[must_use]
    pub const fn gid(self) -> u32 {
        self.0
    }
}

/// Why a group was not found.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// `/etc/group` cannot be read.
    #[error("cannot read /etc/group to look up \"{name}\" ({source}): specify the number of the group")]
    Unreadable {
        /// The group.
        name: String,
        /// Why it cannot be read.
        source: io::Error,
    },
    /// `/etc/group` does not list it.
    #[error("/etc/group has no group \"{0}\": if the group is defined elsewhere, specify its number")]
    Unknown(String),
}

impl FromStr for Group {
    type Err = GroupError;

    /// Parses a number, or looks up a name in `/etc/group`.
    fn from_str(name: &str) -> Result<Self, GroupError> {
        // `u32::MAX` is not a group: chown(2) takes it to mean "do not change the group".
        if let Ok(gid) = name.parse()
            && gid != u32::MAX
        {
            return Ok(Self(gid));
        }
        let groups =
            fs::read("/etc/group").map_err(|source| GroupError::Unreadable { name: name.into(), source })?;
        gid_of(name, &String::from_utf8_lossy(&groups))
            .map(Self)
            .ok_or_else(|| GroupError::Unknown(name.into()))
    }
}

fn gid_of(name: &str, groups: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_name_and_number() {
        let groups = "root:x:0:\nkms:x:990:api,vault\nbroken\nkms2:x:nan:\n";
        assert_eq!(gid_of("kms", groups), Some(990));
        assert_eq!(gid_of("root", groups), Some(0));
        for unknown in ["km", "kms2", "broken", ""] {
            assert_eq!(gid_of(unknown, groups), None, "{unknown}");
        }
        assert_eq!("990".parse::<Group>().unwrap().gid(), 990);
        let error = "no such group".parse::<Group>().unwrap_err().to_string();
        assert!(error.contains("no such group"), "{error}");
        "4294967295".parse::<Group>().unwrap_err();
    }
}
