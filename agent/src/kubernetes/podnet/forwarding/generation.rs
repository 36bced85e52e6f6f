//! Whether anybody has changed anything in nftables: one question to the kernel, without a program.
//!
//! Every transaction, also those of `iptables-nft` and kube-proxy, raises the generation of the network namespace's rules
//! (`NFT_MSG_GETGEN` in `linux/netfilter/nf_tables.h`). While it stays, so do all rules, and nothing need be read.

use std::io;

use rustix::{
    fd::OwnedFd,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect,
        netlink::{self, SocketAddrNetlink},
        recv, send, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN`.
const GET: u16 = 10 << 8 | 16;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN`.
const NEW: u16 = 10 << 8 | 15;
/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// `NFTA_GEN_ID`.
const ID: u16 = 1;
/// The headers of netlink (16) and nfnetlink (4).
const HEADERS: usize = 20;
/// The kernel answers within the call.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);

/// The generation of this network namespace's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Generation(u32);

impl Generation {
    /// Asks the kernel.
    pub(super) fn read() -> io::Result<Self> {
        let socket = open()?;
        let mut question = Vec::with_capacity(HEADERS);
        question.extend(u32::try_from(HEADERS).expect("invariant: it is 20").to_ne_bytes());
        question.extend(GET.to_ne_bytes());
        question.extend(REQUEST.to_ne_bytes());
        // Sequence, sender; then nfgenmsg: any family, version 0, no resource.
        question.resize(HEADERS, 0);
        send(&socket, &question, SendFlags::empty())?;
        let mut answer = [0; 512];
        let (length, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
        parse(&answer[..length]).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
}

fn open() -> io::Result<OwnedFd> {
    let family = AddressFamily::NETLINK;
    let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    connect(&socket, &SocketAddrNetlink::new(0, 0))?;
    Ok(socket)
}

fn parse(answer: &[u8]) -> Option<Generation> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    if kind != NEW {
        return None;
    }
    let mut rest = answer.get(HEADERS..)?;
    while let Some(header) = rest.get(..4) {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        if u16::from_ne_bytes([header[2], header[3]]) == ID {
            return Some(Generation(u32::from_be_bytes(rest.get(4..8)?.try_into().ok()?)));
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_a_broken_one_refused() {
        let mut answer = vec![0; HEADERS];
        answer[4..6].copy_from_slice(&NEW.to_ne_bytes());
        answer.extend([8, 0, 9, 0, 1, 2, 3, 4].iter().copied());
        answer.extend([8, 0, 1, 0, 0, 0, 1, 2]);
        if cfg!(target_endian = "little") {
            assert_eq!(parse(&answer), Some(Generation(0x102)));
        }
        for length in 0..answer.len() {
            assert_eq!(parse(&answer[..length]), None, "{length}");
        }
        assert_eq!(parse(&[0; 64]), None, "an error");
    }
}
