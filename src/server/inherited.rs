//! Takes the listeners of systemd's socket activation.
//!
//! The socket unit holds the listeners, so they outlive this process: clients that connect while no
//! process serves wait in their queue. Mode and owner are those of the unit, and this process must not
//! remove the socket's files.
//!
//! Source: sd_listen_fds(3).

use std::{
    env, io,
    os::unix::net::{SocketAddr, UnixListener},
};

use kms_plugin::address::UnixAddress;
use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;

use super::socket::BoundSocket;

/// `FileDescriptorName=` of the listener for KMS v2. A single listener needs no name.
const KMS: &str = "kms";
/// `FileDescriptorName=` of the listener for KMS v1.
const KMS_V1: &str = "kms-v1";

/// The inherited listeners.
#[derive(Debug, Default)]
pub struct Inherited {
    /// For KMS v2.
    pub kms: Option<BoundSocket>,
    /// For KMS v1.
    pub kms_v1: Option<BoundSocket>,
}

/// Why an inherited descriptor cannot be used. The message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// It is not a listener on a unix socket.
    #[error(
        "descriptor {name:?} of LISTEN_FDS is not a listening unix stream socket{}: the socket unit needs \
         ListenStream=/path and Accept=no",
        in_parentheses(.source.as_ref())
    )]
    NotAListener {
        /// Its name in `LISTEN_FDNAMES`.
        name: String,
        /// The error of the operating system, if there is one.
        source: Option<io::Error>,
    },
    /// Two have the same name, or a name is unknown.
    #[error(
        "descriptors of LISTEN_FDS have the names {names:?}: if there are several, one must have the name \
         {KMS:?} and one may have the name {KMS_V1:?}; set FileDescriptorName= in a socket unit for each"
    )]
    Names {
        /// Their names in `LISTEN_FDNAMES`.
        names: Vec<String>,
    },
}

fn in_parentheses(source: Option<&io::Error>) -> String {
    source.map(|source| format!(" ({source})")).unwrap_or_default()
}

impl Inherited {
    /// Takes the listeners that `LISTEN_FDS`, `LISTEN_PID` and `LISTEN_FDNAMES` describe. Takes none if
    /// `LISTEN_PID` is another process.
    ///
    /// Call it once, before the process starts threads: it removes the variables.
    ///
    /// # Errors
    /// See [`InheritError`].
    pub fn take() -> Result<Self, InheritError> {
        // `listenfd` does not read the names.
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut descriptors = ListenFd::from_env();
        let names: Vec<_> = (0..descriptors.len()).map(|at| name(&names, at)).collect();
        let roles = roles(&names)?;
        let mut inherited = Self::default();
        for (at, (name, role)) in names.into_iter().zip(roles).enumerate() {
            let socket = match descriptors.take_unix_listener(at) {
                Ok(Some(listener)) => listening(listener),
                Ok(None) => Err(None),
                Err(error) => Err(Some(error)),
            };
            let socket = socket.map_err(|source| InheritError::NotAListener { name, source })?;
            match role {
                Role::Kms => inherited.kms = Some(socket),
                Role::KmsV1 => inherited.kms_v1 = Some(socket),
            }
        }
        Ok(inherited)
    }

    /// Returns true if there is any.
    #[must_use]
    pub fn any(&self) -> bool {
        self.kms.is_some() || self.kms_v1.is_some()
    }
}

/// What a listener serves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Role {
    Kms,
    KmsV1,
}

/// Returns the name at this position of `LISTEN_FDNAMES`, or an empty one.
fn name(names: &str, at: usize) -> String {
    names.split(':').nth(at).unwrap_or_default().to_owned()
}

/// Returns the role of each descriptor.
fn roles(names: &[String]) -> Result<Vec<Role>, InheritError> {
    // Without `FileDescriptorName=`, systemd uses the name of the unit.
    if let [alone] = names {
        return Ok(vec![if alone == KMS_V1 { Role::KmsV1 } else { Role::Kms }]);
    }
    let role = |name: &String| match name.as_str() {
        KMS => Some(Role::Kms),
        KMS_V1 => Some(Role::KmsV1),
        _ => None,
    };
    match names.iter().map(role).collect::<Option<Vec<_>>>() {
        Some(roles) if [Role::Kms, Role::KmsV1].iter().all(|role| count(&roles, *role) <= 1) => Ok(roles),
        _ => Err(InheritError::Names { names: names.to_vec() }),
    }
}

fn count(roles: &[Role], role: Role) -> usize {
    roles.iter().filter(|other| **other == role).count()
}

/// Makes a socket of an inherited listener.
///
/// # Errors
/// Fails if it does not listen, or has no address that a client can connect to; with the error of the
/// operating system, if there is one.
fn listening(listener: UnixListener) -> Result<BoundSocket, Option<io::Error>> {
    if !socket_acceptconn(&listener).map_err(|error| Some(error.into()))? {
        return Err(None);
    }
    let address = address_of(&listener.local_addr()?).ok_or(None)?;
    listener.set_nonblocking(true)?;
    Ok(BoundSocket::inherited(address, listener))
}

fn address_of(address: &SocketAddr) -> Option<UnixAddress> {
    use std::os::linux::net::SocketAddrExt;
    if let Some(path) = address.as_pathname() {
        return Some(UnixAddress::Path(path.into()));
    }
    let name = address.as_abstract_name()?;
    Some(UnixAddress::Abstract(String::from_utf8_lossy(name).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::{fd::OwnedFd, unix::net::UnixStream};

    use super::*;

    fn roles_of(names: &[&str]) -> Result<Vec<Role>, String> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        roles(&names).map_err(|error| error.to_string())
    }

    #[test]
    fn one_listener_needs_no_name_and_two_do() {
        use Role::{Kms, KmsV1};
        assert_eq!(roles_of(&[]), Ok(vec![]));
        assert_eq!(roles_of(&["transit-kms.socket"]), Ok(vec![Kms]));
        assert_eq!(roles_of(&[""]), Ok(vec![Kms]));
        assert_eq!(roles_of(&["kms-v1"]), Ok(vec![KmsV1]));
        assert_eq!(roles_of(&["kms-v1", "kms"]), Ok(vec![KmsV1, Kms]));
        for bad in [&["kms", "kms"][..], &["kms", "transit-kms.socket"], &["", ""], &["kms", "kms-v1", "kms"]]
        {
            assert!(roles_of(bad).unwrap_err().contains("FileDescriptorName="), "{bad:?}");
        }
        assert_eq!([0, 1, 2, 3].map(|at| name("a::b", at)), ["a", "", "b", ""]);
    }

    #[test]
    fn only_listeners_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kms.sock");
        let listener = UnixListener::bind(&path).unwrap();
        // With Accept=yes, systemd passes a connection; its address is that of the socket.
        let _client = UnixStream::connect(&path).unwrap();
        let connection = UnixListener::from(OwnedFd::from(listener.accept().unwrap().0));
        let socket = listening(listener).unwrap();
        assert_eq!(socket.address(), &UnixAddress::Path(path.clone()));
        assert!(!socket.file.try_remove().unwrap());
        assert!(path.exists());

        let source = listening(connection).unwrap_err();
        let error = InheritError::NotAListener { name: "x".into(), source }.to_string();
        assert!(error.contains("Accept=no"), "{error}");
    }
}
