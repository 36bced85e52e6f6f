//! The packet socket (packet(7)) below a capture.
#![expect(unsafe_code, reason = "PACKET_VNET_HDR, PACKET_STATISTICS and sockaddr_ll have no safe interface")]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::Context as _;

use super::check::Unfinished;

/// A superpacket, its Ethernet header and the virtio header.
const BUFFER: usize = 66 * 1024;
/// Room in the kernel for what arrives while the thread is not scheduled.
const SOCKET_BUFFER: libc::c_int = 256 << 20;
/// How long one look waits for a packet.
const LOOK_MILLIS: libc::c_int = 20;
/// `virtio_net_hdr`.
const VNET_HEADER: usize = 10;
const ETHERNET_HEADER: usize = 14;
const NEEDS_CSUM: u8 = 1;

/// A packet socket, bound to one interface.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    /// What stands before the IP header.
    link_header: usize,
}

/// Memory to receive into.
pub(super) fn buffer() -> Vec<u8> {
    vec![0; BUFFER]
}

impl Socket {
    /// Opens one in the network namespace of the calling thread.
    pub(super) fn open(interface: &str) -> anyhow::Result<Self> {
        let index = nix::net::if_::if_nametoindex(interface).context("no such interface")?;
        let all = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: the call takes integers only. Protocol 0: nothing is received before the socket is bound.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("no packet socket");
        }
        // SAFETY: the descriptor was just made and is owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        set(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, SOCKET_BUFFER)?;
        set(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        // SAFETY: all zeroes is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = all;
        address.sll_ifindex = index.cast_signed();
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the address is a sockaddr_ll of the length that is given.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) };
        if bound < 0 {
            return Err(io::Error::last_os_error()).context("the packet socket is not bound");
        }
        // Of a TUN packets begin with their IP header.
        let mut bound = address;
        let mut len = len;
        // SAFETY: the address has the length that is given.
        unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut bound).cast(), &raw mut len) };
        let link_header = if bound.sll_hatype == libc::ARPHRD_ETHER { ETHERNET_HEADER } else { 0 };
        Ok(Self { fd, link_header })
    }

    /// Returns the next IP packet that came in; `None` when there is none for a while.
    pub(super) fn receive<'b>(
        &self,
        buffer: &'b mut [u8],
    ) -> anyhow::Result<Option<(&'b [u8], Option<Unfinished>)>> {
        loop {
            let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd is given, as the count says.
            if unsafe { libc::poll(&raw mut poll, 1, LOOK_MILLIS) } == 0 {
                return Ok(None);
            }
            // SAFETY: all zeroes is a valid sockaddr_ll.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut from_len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            // SAFETY: buffer and address have the lengths that are given.
            let received = unsafe {
                libc::recvfrom(
                    self.fd.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    libc::MSG_DONTWAIT,
                    (&raw mut from).cast(),
                    &raw mut from_len,
                )
            };
            let Ok(len) = usize::try_from(received) else {
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => continue,
                    // The interface was taken down; it may come up again.
                    _ if error.raw_os_error() == Some(libc::ENETDOWN) => continue,
                    _ => return Err(error).context("capture"),
                }
            };
            let protocol = u16::from_be(from.sll_protocol);
            let is_ip = [libc::ETH_P_IP as u16, libc::ETH_P_IPV6 as u16].contains(&protocol);
            let start = VNET_HEADER + self.link_header;
            if from.sll_pkttype == libc::PACKET_OUTGOING || !is_ip || len <= start {
                continue;
            }
            let unfinished = self.unfinished(&buffer[..VNET_HEADER]);
            return Ok(Some((&buffer[start..len], unfinished)));
        }
    }

    /// Returns how many packets did not fit the socket's buffer.
    pub(super) fn missed(&self) -> anyhow::Result<u64> {
        let mut counts = [0_u32; 2];
        let mut len = size_of::<[u32; 2]>() as libc::socklen_t;
        // SAFETY: tpacket_stats is two u32 (linux/if_packet.h), and the length says so.
        let got = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                counts.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        anyhow::ensure!(got == 0, "no statistics of the capture: {}", io::Error::last_os_error());
        Ok(counts[1].into())
    }

    fn unfinished(&self, header: &[u8]) -> Option<Unfinished> {
        let field = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
        (header[0] & NEEDS_CSUM != 0).then(|| Unfinished {
            is_merged: header[1] != 0,
            start: field(6).saturating_sub(self.link_header),
            offset: field(8),
        })
    }
}

fn set(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> anyhow::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is an int, and the length says so.
    let done = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    anyhow::ensure!(done == 0, "option {name} of the packet socket: {}", io::Error::last_os_error());
    Ok(())
}
