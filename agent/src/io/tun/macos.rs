//! The TUN device of macOS (utun): one packet per read and write, no offloads.

use std::{
    io,
    num::NonZeroU32,
    os::fd::{AsRawFd, RawFd},
};

use mesh_engine::batch::{Offload, TunFrame};
use tun_rs::{DeviceBuilder, SyncDevice};

use super::{OpenError, Tun};
use crate::io::offload::Offloads;

/// A TUN of macOS.
pub struct Device {
    device: SyncDevice,
}

/// Makes the interface; its name must be `utun` and a number.
///
/// # Errors
/// Says what stands in the way, and what to do about it.
pub fn open(name: &str, _offloads: Offloads) -> Result<Device, OpenError> {
    let build = || -> io::Result<SyncDevice> {
        let device = DeviceBuilder::new().name(name).build_sync()?;
        device.set_nonblocking(true)?;
        Ok(device)
    };
    build().map(|device| Device { device }).map_err(|source| match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => OpenError::Permission { name: name.to_owned() },
        Some(libc::EBUSY) => OpenError::Busy { name: name.to_owned() },
        _ => OpenError::Io { name: name.to_owned(), source },
    })
}

/// Makes the interface, which has one queue.
///
/// # Errors
/// As [`open`].
pub fn open_queues(name: &str, offloads: Offloads, _queues: NonZeroU32) -> Result<Vec<Device>, OpenError> {
    open(name, offloads).map(|device| vec![device])
}

impl Tun for Device {
    fn try_read<'b>(&self, buffer: &'b mut [u8]) -> io::Result<TunFrame<'b>> {
        let len = self.device.recv(buffer)?;
        Ok(TunFrame { packet: &buffer[..len], offload: Offload::None })
    }

    fn try_write(&self, packet: &[u8]) -> io::Result<()> {
        self.device.send(packet).map(drop)
    }
}

impl AsRawFd for Device {
    fn as_raw_fd(&self) -> RawFd {
        self.device.as_raw_fd()
    }
}
