//! Descriptors that a tokio runtime watches.
#![expect(unsafe_code, reason = "registering a descriptor promises that it stays open and the same")]

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use tokio::io::{Interest, unix::AsyncFd};

use super::{tun, udp};

/// A value that owns one open descriptor.
///
/// # Safety
/// `as_raw_fd` gives the same descriptor every time, and it stays open until the value is dropped.
pub unsafe trait OwnedDescriptor: AsRawFd {}

// SAFETY: a device owns the descriptor that it was opened with and has no way to change or close it.
unsafe impl OwnedDescriptor for tun::Device {}

// SAFETY: as above, for the `UdpSocket` in it.
unsafe impl OwnedDescriptor for udp::Socket {}

// SAFETY: it is what the trait asks for.
unsafe impl OwnedDescriptor for OwnedFd {}

// SAFETY: std's sockets own their descriptor; it has no way to change. This one stands for a TUN in tests.
#[cfg(test)]
unsafe impl OwnedDescriptor for std::os::unix::net::UnixDatagram {}

/// Has the current runtime watch a descriptor.
///
/// # Errors
/// When the system refuses.
pub fn register<T: OwnedDescriptor>(inner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: the trait's contract is the function's.
    unsafe { AsyncFd::register_with_interest(inner, interest) }.map_err(Into::into)
}
