//! What outlives a restart: descriptors that the service manager keeps for the next process.
//!
//! systemd's file descriptor store (`FileDescriptorStoreMax=`, see `sd_pid_notify_with_fds(3)` and `sd_listen_fds(3)`),
//! which is spoken to with datagrams on `NOTIFY_SOCKET`:
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
//! While a descriptor of the TUN is open anywhere, its interface is there with its addresses and routes, and what is sent
//! into it waits in its queue; while one of a UDP socket is, its port and its NAT's mappings stay, and what arrives
//! waits. A restart that is not a stop is a pause, so. At a stop the manager closes all of them, and the interface goes as
//! with any process that ends. Without a manager that keeps descriptors nothing of this happens.
//!
//! [`Record`] tells the next process what the descriptors are, and with whom this one had sessions. It is kept in the
//! same way, in memory, and holds no key.

mod inherited;
mod record;

use std::{
    ffi::OsString,
    io::{self, IoSlice, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram, UnixStream},
    },
    time::Duration,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

pub use inherited::Inherited;
pub use record::{Asked, Companion, Record, RecordFile};

/// The manager's socket.
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// How long the manager may take to have let go of descriptors. One that knows no barriers closes the end all the same.
const BARRIER_PATIENCE: Duration = Duration::from_secs(2);

/// Hands descriptors to the service manager, if there is one.
#[derive(Debug, Clone, Default)]
pub struct Keeper {
    socket: Option<OsString>,
}

impl Keeper {
    /// Finds the service manager by its environment variable.
    #[must_use]
    pub fn from_env() -> Self {
        Self { socket: std::env::var_os(NOTIFY_SOCKET).filter(|path| !path.is_empty()) }
    }

    /// Whether there is a manager. Whether it keeps anything is not told by any answer; what it does not keep goes
    /// with this process, as without a manager.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.socket.is_some()
    }

    /// Has a descriptor kept under a name, beside those that have it already.
    pub fn keep(&self, name: &str, descriptor: &impl AsFd) {
        // Not to be watched for errors: a socket's are told to whoever sends next, and are no reason to close it.
        let message = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}\n");
        self.say(&message, Some(descriptor.as_fd()), "a descriptor is not kept");
    }

    /// Has what is kept under these names closed.
    pub fn forget<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        for name in names {
            self.say(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), None, "a descriptor is kept on");
        }
    }

    /// Waits until the manager has done all that it was told.
    pub fn wait(&self) {
        if !self.is_used() {
            return;
        }
        let waited = (|| {
            let (mut done, pending) = UnixStream::pair()?;
            done.set_read_timeout(Some(BARRIER_PATIENCE))?;
            self.send("BARRIER=1\n", Some(pending.as_fd()))?;
            drop(pending);
            done.read(&mut [0])
        })();
        if let Err(error) = waited {
            tracing::warn!(%error, "the service manager does not say that it has closed descriptors");
        }
    }

    fn say(&self, message: &str, descriptor: Option<BorrowedFd<'_>>, failure: &'static str) {
        if let Err(error) = self.send(message, descriptor) {
            tracing::warn!(%error, "{failure}");
        }
    }

    fn send(&self, message: &str, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let Some(path) = &self.socket else { return Ok(()) };
        let socket = UnixDatagram::unbound()?;
        match path.as_encoded_bytes().strip_prefix(b"@") {
            Some(name) => {
                socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?;
            }
            None => socket.connect(path)?,
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        sendmsg(&socket, &[IoSlice::new(message.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read, os::fd::OwnedFd};

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

    use super::*;

    fn receive(socket: &UnixDatagram) -> (String, Vec<OwnedFd>) {
        let mut bytes = [0; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let pieces = &mut [std::io::IoSliceMut::new(&mut bytes)];
        let len = recvmsg(socket, pieces, &mut control, RecvFlags::empty()).unwrap().bytes;
        let rights = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        });
        let descriptors = rights.flatten().collect();
        (String::from_utf8(bytes[..len].to_vec()).unwrap(), descriptors)
    }

    #[test]
    fn descriptors_reach_the_manager_under_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let keeper = Keeper { socket: Some(path.into()) };
        std::fs::write(dir.path().join("file"), "kept").unwrap();
        keeper.keep("mesh-tun-0", &File::open(dir.path().join("file")).unwrap());
        let (said, mut descriptors) = receive(&manager);
        assert_eq!(said, "FDSTORE=1\nFDPOLL=0\nFDNAME=mesh-tun-0\n");
        let mut text = String::new();
        File::from(descriptors.remove(0)).read_to_string(&mut text).unwrap();
        assert_eq!(text, "kept");

        keeper.forget(["mesh-tun-0"]);
        assert_eq!(receive(&manager).0, "FDSTOREREMOVE=1\nFDNAME=mesh-tun-0\n");
        let waiting = std::thread::spawn(move || keeper.wait());
        let (said, descriptors) = receive(&manager);
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
        assert!(!keeper.is_used());
    }
}
