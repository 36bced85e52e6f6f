//! A process that waits for the one before it to end, and is handed what that one has kept.
//!
//! It listens on a socket beside the lock that it waits for. What comes is in the words of systemd's descriptor store, a
//! descriptor with each datagram. All of it was sent before the lock is free.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    path::Path,
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::Inherited;

/// Longest of their messages.
const MAX_MESSAGE_LEN: usize = 256;

/// A process that waits for its turn.
#[derive(Debug)]
pub struct Successor {
    socket: UnixDatagram,
    inherited: Inherited,
}

impl Successor {
    /// Begins to listen, in place of one that has waited here before. The socket's file stays when this one is gone, and
    /// then says nothing: by that time it may be another one's that waits.
    ///
    /// # Errors
    /// When the system does not let it.
    pub fn listen(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let socket = UnixDatagram::bind(path)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, inherited: Inherited::default() })
    }

    /// Takes what has come; few messages fit into the system's queue, so this is to be called while it waits, too.
    pub fn take(&mut self) {
        while let Ok((message, descriptors)) = receive(&self.socket) {
            let name = message.lines().find_map(|line| line.strip_prefix("FDNAME="));
            for descriptor in descriptors {
                self.inherited.add(name.unwrap_or_default().to_owned(), descriptor);
            }
        }
    }

    /// Returns what was handed on, now that the lock is this process's.
    #[must_use]
    pub fn into_inherited(mut self) -> Inherited {
        self.take();
        self.inherited
    }
}

/// Takes one message, with what was sent along.
pub(super) fn receive(socket: &UnixDatagram) -> io::Result<(String, Vec<OwnedFd>)> {
    let mut bytes = [0; MAX_MESSAGE_LEN];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let pieces = &mut [IoSliceMut::new(&mut bytes)];
    let len = recvmsg(socket, pieces, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    let descriptors = rights.flatten().collect();
    Ok((String::from_utf8_lossy(&bytes[..len]).into_owned(), descriptors))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _};

    use super::*;
    use crate::keep::Keeper;

    #[test]
    fn who_waits_is_handed_everything_and_the_record_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("successor");
        let keeper = Keeper::for_successor(path.clone());
        for name in ["mesh-record", "mesh-tun-0", "mesh-udp4-0", "mesh-old"] {
            std::fs::write(dir.path().join(name), name).unwrap();
            keeper.keep(name, &File::open(dir.path().join(name)).unwrap());
        }
        keeper.forget(["mesh-old"]);
        assert!(keeper.is_used() && !keeper.hand_on(), "nobody waits");

        let mut successor = Successor::listen(&path).unwrap();
        successor.take();
        assert!(successor.inherited.is_empty());
        assert!(keeper.hand_on());
        let first = receive(&successor.socket).unwrap().0;
        assert_eq!(first, "FDSTORE=1\nFDPOLL=0\nFDNAME=mesh-udp4-0\n");
        let mut inherited = successor.into_inherited();
        assert_eq!(inherited.names().collect::<Vec<_>>(), ["mesh-record", "mesh-tun-0"]);
        let mut text = String::new();
        File::from(inherited.take("mesh-tun-0").unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "mesh-tun-0");
        assert!(!keeper.hand_on(), "it has what it waited for");
    }

    #[test]
    fn one_that_waits_later_takes_the_place_of_one_that_has_died() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("successor");
        drop(UnixDatagram::bind(&path).unwrap());
        let keeper = Keeper::for_successor(path.clone());
        keeper.keep("mesh-tun-0", &File::open("/dev/null").unwrap());
        assert!(!keeper.hand_on(), "nobody listens there");
        let successor = Successor::listen(&path).unwrap();
        assert!(keeper.hand_on());
        assert!(!successor.into_inherited().is_empty());
    }

    #[test]
    fn more_is_handed_on_than_the_system_s_queue_has_room_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("successor");
        let keeper = Keeper::for_successor(path.clone());
        let count = 100;
        for number in 0..count {
            keeper.keep(&format!("mesh-{number}"), &File::open("/dev/null").unwrap());
        }
        let mut successor = Successor::listen(&path).unwrap();
        let handing = std::thread::spawn(move || keeper.hand_on());
        while !handing.is_finished() {
            successor.take();
            std::thread::yield_now();
        }
        assert!(handing.join().unwrap());
        assert_eq!(successor.into_inherited().names().count(), count);
    }
}
