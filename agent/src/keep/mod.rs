//! What outlives a restart: descriptors that somebody keeps for the next process.
//!
//! On a host that is the service manager, with systemd's file descriptor store (`FileDescriptorStoreMax=`, see
//! `sd_pid_notify_with_fds(3)` and `sd_listen_fds(3)`), which is spoken to with datagrams on `NOTIFY_SOCKET`:
//!
//! ```text
//! this process                                    service manager
//!   FDSTORE=1 FDNAME=mesh-tun-0 FDPOLL=0, + fd -->  keeps a duplicate
//!   (ends, is stopped, killed, crashes)             starts the next process with all of them as 3, 4, ...
//!   FDSTOREREMOVE=1 FDNAME=mesh-tun-0 ----------->  closes it
//!   BARRIER=1, + one end of a pair -------------->  closes the end when all before is done
//! LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES <--------  what was kept
//! ```
//!
//! In a pod it is the next process itself, which is started beside this one and waits for its turn ([`Successor`]). It is
//! handed everything at the end, in the same words.
//!
//! While a descriptor of the TUN is open anywhere, its interface is there with its addresses and routes, and what is sent
//! into it waits in its queue; while one of a UDP socket is, its port and its NAT's mappings stay, and what arrives
//! waits. A restart that is not a stop is a pause, so. At a stop all of them are closed, and the interface goes as
//! with any process that ends. Where nobody keeps descriptors nothing of this happens.
//!
//! [`Record`] tells the next process what the descriptors are, and with whom this one had sessions. It is kept in the
//! same way, in memory, and holds no key.

mod inherited;
mod record;
mod successor;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{self, IoSlice, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram, UnixStream},
    },
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

pub use inherited::Inherited;
pub use record::{Asked, Companion, Record, RecordFile};
pub use successor::Successor;

/// The manager's socket.
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// How long the manager may take to have let go of descriptors. One that knows no barriers closes the end all the same.
const BARRIER_PATIENCE: Duration = Duration::from_secs(2);
/// How long a successor may take to have room for one more: it looks every few milliseconds.
const SUCCESSOR_PATIENCE: Duration = Duration::from_millis(500);

/// Sees to it that descriptors are kept, if anybody does.
#[derive(Debug, Clone, Default)]
pub struct Keeper(Kind);

#[derive(Debug, Clone, Default)]
enum Kind {
    #[default]
    Nobody,
    /// The service manager listens here.
    Manager(OsString),
    /// A successor will, if there is one at the end.
    Successor(Arc<Held>),
}

/// What a successor is to be handed.
#[derive(Debug)]
struct Held {
    /// Where it listens.
    socket: PathBuf,
    descriptors: Mutex<BTreeMap<String, Vec<OwnedFd>>>,
}

impl Keeper {
    /// Finds the service manager by its environment variable.
    #[must_use]
    pub fn from_env() -> Self {
        let manager = std::env::var_os(NOTIFY_SOCKET).filter(|path| !path.is_empty());
        Self(manager.map_or(Kind::Nobody, Kind::Manager))
    }

    /// Keeps everything for a successor, which listens on this socket once it waits.
    #[must_use]
    pub fn for_successor(socket: PathBuf) -> Self {
        Self(Kind::Successor(Arc::new(Held { socket, descriptors: Mutex::default() })))
    }

    /// Whether somebody may keep something. Whether a manager does is not told by any answer; what it does not keep goes
    /// with this process, as without a manager.
    #[must_use]
    pub fn is_used(&self) -> bool {
        match &self.0 {
            Kind::Nobody => false,
            Kind::Manager(_) | Kind::Successor(_) => true,
        }
    }

    /// Has a descriptor kept under a name, beside those that have it already.
    pub fn keep(&self, name: &str, descriptor: &impl AsFd) {
        let kept = match &self.0 {
            Kind::Nobody => Ok(()),
            Kind::Manager(socket) => store(name, descriptor, |message, fd| send(socket, message, fd)),
            Kind::Successor(held) => descriptor.as_fd().try_clone_to_owned().map(|duplicate| {
                held.descriptors().entry(name.to_owned()).or_default().push(duplicate);
            }),
        };
        if let Err(error) = kept {
            tracing::warn!(%error, "a descriptor is not kept");
        }
    }

    /// Has what is kept under these names closed.
    pub fn forget<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        for name in names {
            match &self.0 {
                Kind::Nobody => {}
                Kind::Manager(socket) => {
                    if let Err(error) = send(socket, &format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), None) {
                        tracing::warn!(%error, "a descriptor is kept on");
                    }
                }
                Kind::Successor(held) => {
                    held.descriptors().remove(name);
                }
            }
        }
    }

    /// Waits until the manager has done all that it was told.
    pub fn wait(&self) {
        let Kind::Manager(socket) = &self.0 else { return };
        let waited = (|| {
            let (mut done, pending) = UnixStream::pair()?;
            done.set_read_timeout(Some(BARRIER_PATIENCE))?;
            send(socket, "BARRIER=1\n", Some(pending.as_fd()))?;
            drop(pending);
            done.read(&mut [0])
        })();
        if let Err(error) = waited {
            tracing::warn!(%error, "the service manager does not say that it has closed descriptors");
        }
    }

    /// Sees to it, at the end, that the next process will have what is kept. Returns whether there may be one.
    #[must_use]
    pub fn hand_on(&self) -> bool {
        match &self.0 {
            Kind::Nobody => false,
            Kind::Manager(_) => true,
            Kind::Successor(held) => match held.hand_on() {
                Ok(()) => true,
                Err(error) => {
                    tracing::debug!(%error, "nobody waits to go on");
                    false
                }
            },
        }
    }
}

impl Held {
    fn descriptors(&self) -> MutexGuard<'_, BTreeMap<String, Vec<OwnedFd>>> {
        self.descriptors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record goes last: without it, what came before is of no use to anybody, and is closed.
    fn hand_on(&self) -> io::Result<()> {
        let successor = UnixDatagram::unbound()?;
        successor.connect(&self.socket)?;
        successor.set_write_timeout(Some(SUCCESSOR_PATIENCE))?;
        for (name, descriptors) in self.descriptors().iter().rev() {
            for descriptor in descriptors {
                store(name, descriptor, |message, fd| send_to(&successor, message, fd))?;
            }
        }
        Ok(())
    }
}

/// Says that a descriptor is to be kept.
fn store(
    name: &str,
    descriptor: &impl AsFd,
    say: impl FnOnce(&str, Option<BorrowedFd<'_>>) -> io::Result<()>,
) -> io::Result<()> {
    // Not to be watched for errors: a socket's are told to whoever sends next, and are no reason to close it.
    say(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}\n"), Some(descriptor.as_fd()))
}

fn send(path: &OsString, message: &str, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    match path.as_encoded_bytes().strip_prefix(b"@") {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => socket.connect(path)?,
    }
    send_to(&socket, message, descriptor)
}

fn send_to(socket: &UnixDatagram, message: &str, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    sendmsg(socket, &[IoSlice::new(message.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read};

    use super::{successor::receive, *};

    #[test]
    fn descriptors_reach_the_manager_under_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let keeper = Keeper(Kind::Manager(path.into()));
        std::fs::write(dir.path().join("file"), "kept").unwrap();
        keeper.keep("mesh-tun-0", &File::open(dir.path().join("file")).unwrap());
        let (said, mut descriptors) = receive(&manager).unwrap();
        assert_eq!(said, "FDSTORE=1\nFDPOLL=0\nFDNAME=mesh-tun-0\n");
        let mut text = String::new();
        File::from(descriptors.remove(0)).read_to_string(&mut text).unwrap();
        assert_eq!(text, "kept");

        keeper.forget(["mesh-tun-0"]);
        assert_eq!(receive(&manager).unwrap().0, "FDSTOREREMOVE=1\nFDNAME=mesh-tun-0\n");
        let waiting = std::thread::spawn(move || keeper.wait());
        let (said, descriptors) = receive(&manager).unwrap();
        assert_eq!((said.as_str(), descriptors.len()), ("BARRIER=1\n", 1));
        assert!(!waiting.is_finished());
        drop(descriptors);
        waiting.join().unwrap();
    }

    #[test]
    fn without_a_manager_nothing_is_done() {
        let keeper = Keeper::default();
        keeper.keep("mesh-tun-0", &File::open("/dev/null").unwrap());
        keeper.wait();
        assert!(!keeper.is_used() && !keeper.hand_on());
    }
}
