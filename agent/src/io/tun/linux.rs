//! The TUN device of Linux. With `IFF_VNET_HDR` reads give superpackets of up to 64 KiB, and writes take them; without
//! it, every read and write is one packet.

use std::{
    io::{self, IoSlice},
    num::NonZeroU32,
    ops::Range,
    os::fd::{AsRawFd, RawFd},
    path::Path,
};

use mesh_engine::batch::{Offload, TunFrame};
use tun_rs::{DeviceBuilder, SyncDevice};

use super::{
    OpenError, Tun,
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
    device: SyncDevice,
    /// What is merged into superpackets; without a value the device knows none.
    merge: Option<Merge>,
}

/// Makes the interface; it stays down until the operating system part brings it up. Superpackets are used if they may
/// be and the system has them.
///
/// # Errors
/// Says what stands in the way, and what to do about it.
pub fn open(name: &str, offloads: Offloads) -> Result<Device, OpenError> {
    open_first(name, offloads, Queues::One)
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
            Ok(more) => return Ok(std::iter::once(first).chain(more).collect()),
            Err(error) => tracing::debug!(%error, "the interface has one queue"),
        }
    }
    open(name, offloads).map(|device| vec![device])
}

/// How many queues an interface may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queues {
    One,
    Several,
}

fn open_first(name: &str, offloads: Offloads, queues: Queues) -> Result<Device, OpenError> {
    let forbidden = |c: char| c == '/' || c == '%' || c == ':' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() > MAX_NAME_LEN || name.contains(forbidden) || matches!(name, "." | "..")
    {
        return Err(OpenError::Name { name: name.to_owned() });
    }
    if !Path::new(NODE).exists() {
        return Err(OpenError::Missing { path: NODE });
    }
    let build = |offload: bool| -> io::Result<Device> {
        let device = DeviceBuilder::new()
            .name(name)
            .enable(false)
            .with(|builder| {
                builder.offload(offload).multi_queue(queues == Queues::Several);
            })
            .build_sync()?;
        device.set_nonblocking(true)?;
        let merge = if device.udp_gso() { Merge::TcpAndUdp } else { Merge::Tcp };
        Ok(Device { device, merge: offload.then_some(merge) })
    };
    let built = match build(offloads.tun) {
        // The system may have TUN devices, but none with offloads.
        Err(error) if offloads.tun => build(false).map_err(|_plain| error),
        built => built,
    };
    built.map_err(|source| explain(name, source))
}

impl Device {
    fn another_queue(&self) -> io::Result<Self> {
        let device = self.device.try_clone()?;
        device.set_nonblocking(true)?;
        Ok(Self { device, merge: self.merge })
    }
}

impl Tun for Device {
    fn try_read<'b>(&self, buffer: &'b mut [u8]) -> io::Result<TunFrame<'b>> {
        let len = self.device.recv(buffer)?;
        match self.merge {
            Some(_) => vnet::frame(&buffer[..len]),
            None => Ok(TunFrame { packet: &buffer[..len], offload: Offload::None }),
        }
    }

    fn try_write(&self, packet: &[u8]) -> io::Result<()> {
        match self.merge {
            Some(_) => self.device.send_vectored(&[IoSlice::new(&vnet::PLAIN), IoSlice::new(packet)]),
            None => self.device.send(packet),
        }
        .map(drop)
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
                        self.device.send_vectored(&pieces[..=run.len()]).map(drop)
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
        self.device.as_raw_fd()
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
}
