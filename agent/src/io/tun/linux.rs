//! The TUN device of Linux, with `IFF_VNET_HDR`: reads give superpackets of up to 64 KiB, and writes take them.

use std::{
    io::{self, IoSlice},
    ops::Range,
    os::fd::{AsRawFd, RawFd},
    path::Path,
};

use mesh_engine::batch::TunFrame;
use tun_rs::{DeviceBuilder, SyncDevice};

use super::{
    OpenError, Tun,
    merge::{self, Merge},
    vnet,
};

/// The driver's device node.
const NODE: &str = "/dev/net/tun";

/// `IFNAMSIZ` without its terminating zero.
const MAX_NAME_LEN: usize = 15;

/// A TUN of Linux.
pub struct Device {
    device: SyncDevice,
    merge: Merge,
}

/// Makes the interface; it stays down until the operating system part brings it up.
///
/// # Errors
/// Says what stands in the way, and what to do about it.
pub fn open(name: &str) -> Result<Device, OpenError> {
    let forbidden = |c: char| c == '/' || c == '%' || c == ':' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() > MAX_NAME_LEN || name.contains(forbidden) || matches!(name, "." | "..")
    {
        return Err(OpenError::Name { name: name.to_owned() });
    }
    if !Path::new(NODE).exists() {
        return Err(OpenError::Missing { path: NODE });
    }
    let build = || -> io::Result<SyncDevice> {
        let device = DeviceBuilder::new()
            .name(name)
            .enable(false)
            .with(|builder| {
                builder.offload(true);
            })
            .build_sync()?;
        device.set_nonblocking(true)?;
        Ok(device)
    };
    match build() {
        Ok(device) => {
            let merge = if device.udp_gso() { Merge::TcpAndUdp } else { Merge::Tcp };
            Ok(Device { device, merge })
        }
        Err(source) => Err(explain(name, source)),
    }
}

impl Tun for Device {
    fn try_read<'b>(&self, buffer: &'b mut [u8]) -> io::Result<TunFrame<'b>> {
        let len = self.device.recv(buffer)?;
        vnet::frame(&buffer[..len])
    }

    fn try_write(&self, packet: &[u8]) -> io::Result<()> {
        self.device.send_vectored(&[IoSlice::new(&vnet::PLAIN), IoSlice::new(packet)]).map(drop)
    }

    fn write_batch(&self, bytes: &mut [u8], packets: &[Range<usize>]) -> u64 {
        let mut refused = 0;
        let mut rest = packets;
        while let [first, ..] = rest {
            let (run, later) = rest.split_at(merge::run_len(bytes, rest, self.merge));
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
            assert!(matches!(open(name), Err(OpenError::Name { .. })), "{name:?}");
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
                assert!(matches!(open("lo"), Err(OpenError::Taken { .. })));
                let _first = open("t0").unwrap();
                assert!(matches!(open("t0"), Err(OpenError::Busy { .. })));
            },
        );
    }
}
