//! How a TCP socket below a pipe is set up.
#![cfg_attr(target_os = "linux", expect(unsafe_code, reason = "no safe interface has TCP_NOTSENT_LOWAT"))]

use std::io;

use rustix::net::sockopt;
use tokio::net::TcpStream;

/// Sets a socket up: small messages go at once, little waits in the kernel, a dead path is noticed.
///
/// # Errors
/// When the system refuses.
pub fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    tune(stream)
}

/// Bytes that the kernel takes beyond what it can send now. More would wait in the kernel, where nothing is dropped,
/// and grow old: at 10 Mbit/s this is 50 ms.
#[cfg(target_os = "linux")]
const MAX_UNSENT: libc::c_int = 64 << 10;
/// A connection on which nothing is acknowledged for this long is gone.
#[cfg(target_os = "linux")]
const USER_TIMEOUT_MS: u32 = 20_000;

#[cfg(target_os = "linux")]
fn tune(stream: &TcpStream) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;

    sockopt::set_tcp_user_timeout(stream, USER_TIMEOUT_MS)?;
    let len = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    let max_unsent = MAX_UNSENT;
    // SAFETY: the descriptor is open as long as the stream is borrowed, and the option's value is a C int that lives
    // until the call returns.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const max_unsent).cast(),
            len,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Elsewhere the system's own settings are left.
#[cfg(not(target_os = "linux"))]
fn tune(_stream: &TcpStream) -> io::Result<()> {
    Ok(())
}
