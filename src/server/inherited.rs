//! Listeners that we were started with: socket activation, as systemd has it.
//!
//! The socket unit holds them, so they outlive us: what connects while nobody serves waits in their
//! queue. They have the unit's mode and owner, and their files are not ours to remove.
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

/// `FileDescriptorName=` of the listener for KMS v2; one that is alone needs no name.
const KMS: &str = "kms";
/// That of the one for KMS v1.
const KMS_V1: &str = "kms-v1";

/// What was inherited, if anything.
#[derive(Debug, Default)]
pub struct Inherited {
    /// For KMS v2.
    pub kms: Option<BoundSocket>,
    /// For KMS v1.
    pub kms_v1: Option<BoundSocket>,
}

/// Why an inherited descriptor is of no use; the message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// Not one that listens on a unix socket.
    #[error(
        "descriptor {name:?} of LISTEN_FDS is not a listening unix stream socket{}: the socket unit needs \
         ListenStream=/path and Accept=no",
        because(.source.as_ref())
    )]
    NotAListener {
        /// What it is called.
        name: String,
        /// Why, if the system says.
        source: Option<io::Error>,
    },
    /// Two of the same name, or one of a name that means nothing.
    #[error(
        "descriptors of LISTEN_FDS are called {names:?}: among several, one is to be called {KMS:?} and one \
         may be called {KMS_V1:?}, by FileDescriptorName= in socket units of their own"
    )]
    Names {
        /// What they are called.
        names: Vec<String>,
    },
}

fn because(source: Option<&io::Error>) -> String {
    source.map(|source| format!(" ({source})")).unwrap_or_default()
}

impl Inherited {
    /// Takes what `LISTEN_FDS`, `LISTEN_PID` and `LISTEN_FDNAMES` name; nothing if they are not for us.
    ///
    /// To be called once, before there are threads: the variables are removed.
    ///
    /// # Errors
    /// See [`InheritError`].
    pub fn take() -> Result<Self, InheritError> {
        // The crate knows nothing of names.
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut descriptors = ListenFd::from_env();
        let names: Vec<_> = (0..descriptors.len()).map(|at| name(&names, at)).collect();
        let places = places(&names)?;
        let mut inherited = Self::default();
        for (at, (name, place)) in names.into_iter().zip(places).enumerate() {
            let socket = match descriptors.take_unix_listener(at) {
                Ok(Some(listener)) => listening(listener),
                Ok(None) => Err(None),
                Err(error) => Err(Some(error)),
            };
            let socket = socket.map_err(|source| InheritError::NotAListener { name, source })?;
            match place {
                Place::Kms => inherited.kms = Some(socket),
                Place::KmsV1 => inherited.kms_v1 = Some(socket),
            }
        }
        Ok(inherited)
    }

    /// Whether there is any.
    #[must_use]
    pub fn any(&self) -> bool {
        self.kms.is_some() || self.kms_v1.is_some()
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    Kms,
    KmsV1,
}

/// The name at this position of `LISTEN_FDNAMES`; empty if there is none.
fn name(names: &str, at: usize) -> String {
    names.split(':').nth(at).unwrap_or_default().to_owned()
}

/// What each is for.
fn places(names: &[String]) -> Result<Vec<Place>, InheritError> {
    // Unless told otherwise, systemd calls it as its unit is called.
    if let [alone] = names {
        return Ok(vec![if alone == KMS_V1 { Place::KmsV1 } else { Place::Kms }]);
    }
    let place = |name: &String| match name.as_str() {
        KMS => Some(Place::Kms),
        KMS_V1 => Some(Place::KmsV1),
        _ => None,
    };
    match names.iter().map(place).collect::<Option<Vec<_>>>() {
        Some(places) if [Place::Kms, Place::KmsV1].iter().all(|one| count(&places, *one) <= 1) => Ok(places),
        _ => Err(InheritError::Names { names: names.to_vec() }),
    }
}

fn count(places: &[Place], one: Place) -> usize {
    places.iter().filter(|place| **place == one).count()
}

/// # Errors
/// None, or the system's, if it does not listen where a client could find it.
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

    fn told(names: &[&str]) -> Result<Vec<Place>, String> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        places(&names).map_err(|error| error.to_string())
    }

    #[test]
    fn one_needs_no_name_and_two_do() {
        use Place::{Kms, KmsV1};
        assert_eq!(told(&[]), Ok(vec![]));
        assert_eq!(told(&["transit-kms.socket"]), Ok(vec![Kms]));
        assert_eq!(told(&[""]), Ok(vec![Kms]));
        assert_eq!(told(&["kms-v1"]), Ok(vec![KmsV1]));
        assert_eq!(told(&["kms-v1", "kms"]), Ok(vec![KmsV1, Kms]));
        for bad in [&["kms", "kms"][..], &["kms", "transit-kms.socket"], &["", ""], &["kms", "kms-v1", "kms"]]
        {
            assert!(told(bad).unwrap_err().contains("FileDescriptorName="), "{bad:?}");
        }
        assert_eq!([0, 1, 2, 3].map(|at| name("a::b", at)), ["a", "", "b", ""]);
    }

    #[test]
    fn only_what_listens_somewhere_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kms.sock");
        let listener = UnixListener::bind(&path).unwrap();
        // With Accept=yes it is a connection that is passed, and its address is the socket's.
        let _client = UnixStream::connect(&path).unwrap();
        let connection = UnixListener::from(OwnedFd::from(listener.accept().unwrap().0));
        let socket = listening(listener).unwrap();
        assert_eq!(socket.address(), &UnixAddress::Path(path.clone()));
        assert!(!socket.file.remove_at_once().unwrap());
        assert!(path.exists());

        let source = listening(connection).unwrap_err();
        let error = InheritError::NotAListener { name: "x".into(), source }.to_string();
        assert!(error.contains("Accept=no"), "{error}");
    }
}
