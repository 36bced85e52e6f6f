//! The TUN device: the host's end of the overlay.
//!
//! A [`Tun`] is a non-blocking file descriptor that gives and takes IP packets. The driver waits
//! for it and reads until `WouldBlock`. On Linux a read may give a superpacket (`IFF_VNET_HDR`), which the
//! engine cuts; elsewhere every read gives one packet. A TUN disappears when the last descriptor of it is closed.

use std::{io, ops::Range, os::fd::AsRawFd};

use mesh_engine::batch::TunFrame;

#[cfg(target_os = "linux")]
mod attached;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "linux")]
mod merge;
mod vnet;

#[cfg(target_os = "linux")]
pub use linux::{Device, adopt_queues, open, open_queues};
#[cfg(target_os = "macos")]
pub use macos::{Device, open, open_queues};

/// Bytes that one read of a TUN may give: the longest IP packet and the header that Linux puts before it.
pub const READ_BUFFER_LEN: usize = 65_535 + vnet::HEADER_LEN;

/// A TUN device, or one of its queues, non-blocking.
pub trait Tun: AsRawFd + Send + Sync + 'static {
    /// Reads one packet or superpacket into a buffer of [`READ_BUFFER_LEN`] bytes.
    ///
    /// # Errors
    /// `WouldBlock` when the queue is empty; anything else concerns this packet, unless [`is_lost`] says otherwise.
    fn try_read<'b>(&self, buffer: &'b mut [u8]) -> io::Result<TunFrame<'b>>;

    /// Writes one IP packet.
    ///
    /// # Errors
    /// When the kernel refuses the packet (the interface is down, the packet is not IP): count it and go on.
    fn try_write(&self, packet: &[u8]) -> io::Result<()>;

    /// Writes the packets that lie at `packets` in `bytes`, with as few system calls as the device allows, and
    /// returns how many the kernel refused. The bytes are scratch afterwards.
    fn write_batch(&self, bytes: &mut [u8], packets: &[Range<usize>]) -> u64 {
        packets.iter().map(|range| u64::from(self.try_write(&bytes[range.clone()]).is_err())).sum()
    }
}

/// Why a TUN could not be opened: each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The kernel has no TUN driver, or the container does not show it.
    #[error("{path} is missing: load the tun module (modprobe tun), or give the container the device")]
    Missing {
        /// Where it should be.
        path: &'static str,
    },
    /// The process may not make interfaces.
    #[error("no permission to make the interface {name}: run as root or with CAP_NET_ADMIN")]
    Permission {
        /// The interface.
        name: String,
    },
    /// Another program has it.
    #[error(
        "the interface {name} is in use by another program: stop that program or choose another name with --interface"
    )]
    Busy {
        /// The interface.
        name: String,
    },
    /// It is there, but is no TUN.
    #[error(
        "an interface {name} of another kind is there already: remove it (ip link del {name}) or choose another name with --interface"
    )]
    Taken {
        /// The interface.
        name: String,
    },
    /// The system does not take the name.
    #[error("{name:?} is not an interface name: 1 to 15 characters without '/' and spaces")]
    Name {
        /// What was asked for.
        name: String,
    },
    /// Anything else.
    #[error("the interface {name} cannot be made")]
    Io {
        /// The interface.
        name: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Whether an error of a read says that the device itself is gone (somebody deleted the interface).
#[must_use]
pub fn is_lost(error: &io::Error) -> bool {
    // Linux answers EBADFD, which other systems do not have.
    #[cfg(target_os = "linux")]
    const DETACHED: i32 = libc::EBADFD;
    #[cfg(not(target_os = "linux"))]
    const DETACHED: i32 = libc::ENXIO;
    matches!(error.raw_os_error(), Some(DETACHED | libc::EBADF | libc::ENODEV))
}
