//! Flushing the connection tracking table over netlink, so that no tool is needed for it.

use std::io;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE` (linux/netfilter/nfnetlink_conntrack.h).
const CT_DELETE: u16 = 0x0102;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const REQUEST_ACK: u16 = 0x0005;
/// A netlink header of 16 bytes and a `nfgenmsg` of 4.
const LENGTH: u32 = 20;
/// Where the error number stands in the acknowledgement: right after its header.
const ERROR_AT: usize = 16;

/// Deletes every tracked connection of the namespace of the calling thread.
///
/// A delete message that names no connection means all of them.
pub(super) fn flush() -> io::Result<()> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    let mut message = Vec::with_capacity(LENGTH as usize);
    message.extend(LENGTH.to_ne_bytes());
    message.extend(CT_DELETE.to_ne_bytes());
    message.extend(REQUEST_ACK.to_ne_bytes());
    message.extend([0; 12]); // sequence, port, and a nfgenmsg for every address family
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0; 64];
    let got = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let code = answer[..got].get(ERROR_AT..ERROR_AT + 4).and_then(|bytes| bytes.try_into().ok());
    match code.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "netlink answer is too short")),
    }
}
