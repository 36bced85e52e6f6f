//! The TUN device of Linux. With `IFF_VNET_HDR` reads give superpackets of up to 64 KiB, and writes take them; without
//! it, every read and write is one packet.

use std::{
    io::{self, IoSlice},
    num::NonZeroU32,
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    path::Path,
};

use mesh_engine::batch::{Offload, TunFrame};
use tun_rs::{DeviceBuilder, SyncDevice};

use super::{
    OpenError, Tun, attached,
    merge::{self, Merge},
    vnet,
};
use crate::io::offload::Offloads;

/// The driver's device node.
const NODE: &str = "/dev/net/tun";

/// `IFNAMSIZ` without its terminating zero.
const MAX_NAME_LEN: usize = 15;

/// A TUN of Linux.
pub struct Device {
    descriptor: OwnedFd,
    /// What is merged into superpackets; without a value the device knows none.
    merge: Option<Merge>,
}

/// Makes the interface; it stays down until the operating system part brings it up. Superpackets are used if they may
/// be and the system has them.
///
/// # Errors
/// Says what stands in the way, and what to do about it.
pub fn open(name: &str, offloads: Offloads) -> Result<Device, OpenError> {
    open_first(name, offloads, Queues::One).and_then(|first| first.into_device(name))
}

/// Makes the interface as [`open`] does, with so many queues, if it may have them and the system can: else with one. What
/// is written to a queue tells the system where the answers are to go (`tun_automq_select_queue` in drivers/net/tun.c).
///
/// # Errors
/// As [`open`].
pub fn open_queues(name: &str, offloads: Offloads, queues: NonZeroU32) -> Result<Vec<Device>, OpenError> {
    if queues.get() > 1
        && offloads.steering
        && let Ok(first) = open_first(name, offloads, Queues::Several)
    {
        let more: io::Result<Vec<_>> = (1..queues.get()).map(|_| first.another_queue()).collect();
        match more {
            Ok(more) => {
                return std::iter::once(first).chain(more).map(|queue| queue.into_device(name)).collect();
            }
            Err(error) => tracing::debug!(%error, "the interface has one queue"),
        }
    }
    open(name, offloads).map(|device| vec![device])
}

/// Takes over queues of an interface that somebody else has kept open, as [`open_queues`] would have made them. `None`
/// if they are not of this interface any more, which is so when it was deleted or renamed.
#[must_use]
pub fn adopt_queues(name: &str, descriptors: Vec<OwnedFd>) -> Option<Vec<Device>> {
    let adopt = |descriptor: OwnedFd| {
        let found = attached::interface_of(&descriptor).ok().filter(|found| found.name == name)?;
        let merge = found.has_header.then(|| match attached::offload(&descriptor) {
            Ok(attached::Offloaded::TcpAndUdp) => Some(Merge::TcpAndUdp),
            Ok(attached::Offloaded::Tcp) => Some(Merge::Tcp),
            Err(_) => None,
        });
        rustix::io::ioctl_fionbio(&descriptor, true).ok()?;
        match merge {
            Some(merge) => Some(Device { descriptor, merge: Some(merge?) }),
            None => Some(Device { descriptor, merge: None }),
        }
    };
    descriptors.into_iter().map(adopt).collect()
}

/// How many queues an interface may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queues {
    One,
    Several,
}

/// An interface's queue, as the library that opened it has it.
struct Opened {
    device: SyncDevice,
    merge: Option<Merge>,
}

fn open_first(name: &str, offloads: Offloads, queues: Queues) -> Result<Opened, OpenError> {
    let forbidden = |c: char| c == '/' || c == '%' || c == ':' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() > MAX_NAME_LEN || name.contains(forbidden) || matches!(name, "." | "..")
    {
        return Err(OpenError::Name { name: name.to_owned() });
    }
    if !Path::new(NODE).exists() {
        return Err(OpenError::Missing { path: NODE });
    }
    let build = |offload: bool| -> io::Result<Opened> {
        let device = DeviceBuilder::new()
            .name(name)
            .enable(false)
            .with(|builder| {
                builder.offload(offload).multi_queue(queues == Queues::Several);
            })
            .build_sync()?;
        device.set_nonblocking(true)?;
        let merge = if device.udp_gso() { Merge::TcpAndUdp } else { Merge::Tcp };
        Ok(Opened { device, merge: offload.then_some(merge) })
    };
    let built = match build(offloads.tun) {
        // The system may have TUN devices, but none with offloads.
        Err(error) if offloads.tun => build(false).map_err(|_plain| error),
        built => built,
    };
    built.map_err(|source| explain(name, source))
}

impl Opened {
    fn another_queue(&self) -> io::Result<Self> {
        let device = self.device.try_clone()?;
        device.set_nonblocking(true)?;
        Ok(Self { device, merge: self.merge })
    }

    /// Keeps the descriptor alone, which is all that a queue of a predecessor's has.
    fn into_device(self, name: &str) -> Result<Device, OpenError> {
        let descriptor = self.device.as_fd().try_clone_to_owned();
        let descriptor = descriptor.map_err(|source| OpenError::Io { name: name.to_owned(), source })?;
        Ok(Device { descriptor, merge: self.merge })
    }
}

impl Device {
    fn send(&self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        rustix::io::writev(&self.descriptor, pieces).map(drop).map_err(Into::into)
    }
}

impl Tun for Device {
    fn try_read<'b>(&self, buffer: &'b mut [u8]) -> io::Result<TunFrame<'b>> {
        let len = rustix::io::read(&self.descriptor, &mut *buffer)?;
        match self.merge {
            Some(_) => vnet::frame(&buffer[..len]),
            None => Ok(TunFrame { packet: &buffer[..len], offload: Offload::None }),
        }
    }

    fn try_write(&self, packet: &[u8]) -> io::Result<()> {
        match self.merge {
            Some(_) => self.send(&[IoSlice::new(&vnet::PLAIN), IoSlice::new(packet)]),
            None => self.send(&[IoSlice::new(packet)]),
        }
    }

    fn write_batch(&self, bytes: &mut [u8], packets: &[Range<usize>]) -> u64 {
        let mut refused = 0;
        let mut rest = packets;
        while let [first, ..] = rest {
            let (run, later) =
                rest.split_at(self.merge.map_or(1, |merge| merge::run_len(bytes, rest, merge)));
            rest = later;
            let written = match run {
                [single] => self.try_write(&bytes[single.clone()]),
                run => match merge::merge_headers(bytes, run) {
                    Some((header, skip)) => {
                        // The virtio header, then the packets; a run is never longer than this.
                        let mut pieces = [IoSlice::new(&[]); 1 + merge::MAX_RUN];
                        pieces[0] = IoSlice::new(&header);
                        pieces[1] = IoSlice::new(&bytes[first.clone()]);
                        for (piece, range) in pieces[2..].iter_mut().zip(&run[1..]) {
                            *piece = IoSlice::new(&bytes[range.start + skip..range.end]);
                        }
                        self.send(&pieces[..=run.len()])
                    }
                    None => Err(io::Error::from(io::ErrorKind::InvalidData)),
                },
            };
            refused += if written.is_err() { run.len() as u64 } else { 0 };
        }
        refused
    }
}

impl AsRawFd for Device {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Turns what the driver answered into what to do about it (`tun_set_iff` in the kernel's drivers/net/tun.c).
fn explain(name: &str, source: io::Error) -> OpenError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => OpenError::Permission { name },
        Some(libc::EBUSY) => OpenError::Busy { name },
        Some(libc::EINVAL | libc::EEXIST) => OpenError::Taken { name },
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => OpenError::Missing { path: NODE },
        _ => OpenError::Io { name, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_can_have_are_refused_before_the_system_is_asked() {
        for name in ["", "sixteen-letters-", "a/b", "a b", "..", "mesh%d", "a:b"] {
            assert!(matches!(open(name, Offloads::ALL), Err(OpenError::Name { .. })), "{name:?}");
        }
    }

    #[test]
    fn each_answer_of_the_driver_says_what_to_do() {
        for (errno, advice) in [
            (libc::EPERM, "CAP_NET_ADMIN"),
            (libc::EBUSY, "--interface"),
            (libc::EINVAL, "ip link del mesh0"),
            (libc::ENOENT, "modprobe tun"),
        ] {
            let error = explain("mesh0", io::Error::from_raw_os_error(errno));
            assert!(error.to_string().contains(advice), "{error}");
        }
    }

    #[test]
    fn a_name_that_is_taken_is_told_from_one_that_is_in_use() {
        crate::netns::isolated(
            "io::tun::linux::tests::a_name_that_is_taken_is_told_from_one_that_is_in_use",
            async || {
                assert!(matches!(open("lo", Offloads::ALL), Err(OpenError::Taken { .. })));
                let _first = open("t0", Offloads::ALL).unwrap();
                assert!(matches!(open("t0", Offloads::ALL), Err(OpenError::Busy { .. })));
            },
        );
    }

    #[test]
    fn what_was_kept_open_is_taken_over_while_it_is_the_same_interface() {
        crate::netns::isolated(
            "io::tun::linux::tests::what_was_kept_open_is_taken_over_while_it_is_the_same_interface",
            async || {
                for offloads in [Offloads::ALL, Offloads::NONE] {
                    let first = open("t0", offloads).unwrap();
                    let kept = || vec![first.descriptor.try_clone().unwrap()];
                    let second = adopt_queues("t0", kept()).unwrap();
                    assert_eq!(second[0].merge.is_some(), first.merge.is_some());
                    assert!(adopt_queues("t1", kept()).is_none(), "another interface");
                    let other = std::fs::File::open("/dev/null").unwrap();
                    assert!(adopt_queues("t0", vec![other.into()]).is_none(), "no TUN at all");
                    let deleted = std::process::Command::new("ip").args(["link", "del", "t0"]).status();
                    assert!(deleted.unwrap().success());
                    assert!(adopt_queues("t0", kept()).is_none(), "it is gone");
                }
            },
        );
    }
}
