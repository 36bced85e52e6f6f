//! Opening TUN devices, and the timing of the calling thread.
#![expect(unsafe_code, reason = "TUNSETIFF, PR_SET_TIMERSLACK and setpriority have no safe interface")]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;

nix::ioctl_write_ptr_bad!(tun_set_iff, libc::TUNSETIFF, libc::ifreq);

/// Makes a TUN device in the network namespace of the calling thread. It lives as long as the descriptor.
pub(super) fn open(interface: &str) -> io::Result<OwnedFd> {
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "interface name is too long"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is a TUN control file and the request outlives the call.
    unsafe { tun_set_iff(file.as_raw_fd(), &raw const request) }?;
    Ok(file.into())
}

/// Runs before the programs under test: a late simulator is a jitter that nobody asked for.
const NICENESS: libc::c_int = -10;

/// Lets timeouts of the calling thread be exact to a nanosecond instead of 50 microseconds, and lets it go before
/// others where that is permitted.
pub(super) fn set_exact_timers() {
    // SAFETY: the calls take integers only, and 0 is the calling thread.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1);
        libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS);
    }
}
