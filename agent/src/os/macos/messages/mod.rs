//! The messages of macOS's routing socket, from bytes (`net/route.h`, `net/if.h`). No IO.
//!
//! A message is a header and, as its bit mask says, up to eight addresses, which take as much room as they say of
//! themselves, rounded up to four bytes:
//!
//! ```text
//! rt_msghdr   92 bytes   len:2 version:1 type:1 index:2 -:2 flags:4 addrs:4 pid:4 seq:4 errno:4 use:4 inits:4 metrics:56
//! if_msghdr  112 bytes   len:2 version:1 type:1 addrs:4 flags:4 index:2 -:2 data:96
//! ifa_msghdr  20 bytes   len:2 version:1 type:1 addrs:4 flags:4 index:2 -:2 metric:4
//! sockaddr               len:1 family:1 ...      an IPv4 address at 4, an IPv6 address at 8, its scope at 24
//! ```
//!
//! Numbers are in the host's order: that of every Mac, little-endian. Masks are cut short behind their last byte
//! that is not zero, down to nothing. An IPv6 address of a link carries the link's index in its second group.

use std::{
    iter,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::super::burst::News;

/// The version that all of them carry.
const RTM_VERSION: u8 = 5;
/// Types.
const RTM_ADD: u8 = 0x1;
const RTM_DELETE: u8 = 0x2;
const RTM_CHANGE: u8 = 0x3;
const RTM_NEWADDR: u8 = 0xc;
const RTM_DELADDR: u8 = 0xd;
const RTM_IFINFO: u8 = 0xe;

/// Lengths of headers.
const ROUTE_HEADER: usize = 92;
const LINK_HEADER: usize = 112;
const ADDRESS_HEADER: usize = 20;
/// What all of them begin with.
const COMMON: usize = 4;

/// Kinds of addresses, in the order in which they follow the header; each has the bit of its place.
const KINDS: usize = 8;
const DESTINATION: usize = 0;
const GATEWAY: usize = 1;
const NETMASK: usize = 2;
const INTERFACE_ADDRESS: usize = 5;
/// What addresses are rounded up to.
const ALIGNMENT: usize = 4;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 30;
const V4_AT: usize = 4;
const V6_AT: usize = 8;

/// Of a link: somebody wants it, and it can be used.
const IFF_UP: u32 = 0x1;
const IFF_RUNNING: u32 = 0x40;
/// Of a route: it was not there before a packet needed it, or is a neighbour's hardware address. Such come and go all the
/// time, and say nothing of the network.
const RTF_LLINFO: u32 = 0x400;
const RTF_WASCLONED: u32 = 0x20000;

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// A link changed.
    Link {
        /// Its interface.
        index: u32,
        /// Whether it can be used.
        is_usable: bool,
    },
    /// An address came or went.
    Address {
        /// Its interface.
        index: u32,
        /// It, if it is one of IP.
        address: Option<IpAddr>,
        /// Which of them.
        change: Change,
    },
    /// A route came, went or changed.
    Route {
        /// The interface that it leads to.
        index: u32,
        /// Its flags.
        flags: u32,
        /// What it is for, if it is one of IP.
        destination: Option<IpAddr>,
        /// How much of that counts; `None` for a host's.
        prefix_len: Option<u8>,
        /// The router, if there is one.
        gateway: Option<IpAddr>,
        /// Which of them.
        change: Change,
    },
    /// Something else, by its type.
    Other(u8),
}

/// What became of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Added,
    Removed,
    Changed,
}

/// What is not understood of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidMessage {
    /// It says that it is longer than what is there, or too short to be one.
    #[error("the message is cut short")]
    Truncated,
    /// It is of another version.
    #[error("version {0} is not known")]
    Version(u8),
    /// An address in it says that it is longer than what is there.
    #[error("an address is cut short")]
    Address,
}

/// Reads one message after the other. Of what is not understood the length is believed, if it makes sense.
pub(super) fn parse(mut bytes: &[u8]) -> impl Iterator<Item = Result<Message, InvalidMessage>> {
    iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let len = u16_at(bytes, 0).map_or(0, usize::from);
        let Some((message, rest)) = bytes.split_at_checked(len).filter(|_| len >= COMMON) else {
            // There is no telling where the next one begins.
            bytes = &[];
            return Some(Err(InvalidMessage::Truncated));
        };
        bytes = rest;
        Some(parse_one(message))
    })
}

impl Message {
    /// Returns what is news in it, if anything is.
    pub(super) fn news(&self) -> Option<News> {
        match self {
            Self::Link { index, is_usable: false } | Self::Address { index, change: Change::Removed, .. } => {
                Some(News::Lost(*index))
            }
            Self::Link { .. } | Self::Address { .. } => Some(News::Other),
            Self::Route { flags, .. } if flags & (RTF_LLINFO | RTF_WASCLONED) != 0 => None,
            Self::Route { prefix_len: Some(0), change: Change::Added | Change::Changed, .. } => {
                Some(News::WayOut)
            }
            Self::Route { .. } => Some(News::Other),
            Self::Other(_) => None,
        }
    }
}

/// Reads a message whose length is that of the slice.
fn parse_one(message: &[u8]) -> Result<Message, InvalidMessage> {
    use InvalidMessage::Truncated;
    let (version, kind) = (message[2], message[3]);
    if version != RTM_VERSION {
        return Err(InvalidMessage::Version(version));
    }
    let change = match kind {
        RTM_ADD | RTM_NEWADDR => Change::Added,
        RTM_DELETE | RTM_DELADDR => Change::Removed,
        RTM_CHANGE | RTM_IFINFO => Change::Changed,
        other => return Ok(Message::Other(other)),
    };
    match kind {
        RTM_IFINFO => {
            let header = message.get(..LINK_HEADER).ok_or(Truncated)?;
            let flags = u32_at(header, 8).ok_or(Truncated)?;
            let index = u16_at(header, 12).ok_or(Truncated)?.into();
            let is_usable = flags & IFF_UP != 0 && flags & IFF_RUNNING != 0;
            Ok(Message::Link { index, is_usable })
        }
        RTM_NEWADDR | RTM_DELADDR => {
            let (header, addresses) = message.split_at_checked(ADDRESS_HEADER).ok_or(Truncated)?;
            let mask = u32_at(header, 4).ok_or(Truncated)?;
            let index = u16_at(header, 12).ok_or(Truncated)?.into();
            let addresses = split(addresses, mask)?;
            Ok(Message::Address { index, address: ip(addresses[INTERFACE_ADDRESS]), change })
        }
        _ => {
            let (header, addresses) = message.split_at_checked(ROUTE_HEADER).ok_or(Truncated)?;
            let index = u16_at(header, 4).ok_or(Truncated)?.into();
            let flags = u32_at(header, 8).ok_or(Truncated)?;
            let mask = u32_at(header, 12).ok_or(Truncated)?;
            let addresses = split(addresses, mask)?;
            let destination = ip(addresses[DESTINATION]);
            let gateway = ip(addresses[GATEWAY]);
            let prefix_len = addresses[NETMASK]
                .filter(|_| mask & 1 << NETMASK != 0)
                .and_then(|netmask| prefix_len(netmask, destination?));
            Ok(Message::Route { index, flags, destination, prefix_len, gateway, change })
        }
    }
}

/// Cuts addresses apart: those that the mask names, each in its place.
fn split(mut bytes: &[u8], mask: u32) -> Result<[Option<&[u8]>; KINDS], InvalidMessage> {
    let mut addresses = [None; KINDS];
    for (kind, address) in addresses.iter_mut().enumerate() {
        if mask & 1 << kind == 0 {
            continue;
        }
        // An empty mask may be left out at the end.
        let Some(len) = bytes.first().copied().map(usize::from) else { break };
        *address = Some(bytes.get(..len).ok_or(InvalidMessage::Address)?);
        let room = len.max(1).next_multiple_of(ALIGNMENT);
        bytes = bytes.get(room..).unwrap_or_default();
    }
    Ok(addresses)
}

/// Reads an address of IP, without the link that it carries.
fn ip(address: Option<&[u8]>) -> Option<IpAddr> {
    let address = address?;
    match *address.get(1)? {
        AF_INET => {
            let octets: [u8; 4] = address.get(V4_AT..V4_AT + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(octets).into())
        }
        AF_INET6 => {
            let octets: [u8; 16] = address.get(V6_AT..V6_AT + 16)?.try_into().ok()?;
            let mut segments = Ipv6Addr::from(octets).segments();
            if Ipv6Addr::from(octets).is_unicast_link_local() {
                segments[1] = 0;
            }
            Some(Ipv6Addr::from(segments).into())
        }
        _ => None,
    }
}

/// Counts the ones of a mask, which may be cut short; its family need not be right. `None` if it is no prefix's.
fn prefix_len(netmask: &[u8], destination: IpAddr) -> Option<u8> {
    let (at, len) = match destination {
        IpAddr::V4(_) => (V4_AT, 4),
        IpAddr::V6(_) => (V6_AT, 16),
    };
    let given = netmask.get(at..).unwrap_or_default();
    let mut bits = [0; 16];
    for (bit, given) in bits.iter_mut().zip(given.iter().take(len)) {
        *bit = *given;
    }
    let bits = u128::from_be_bytes(bits);
    let ones = bits.leading_ones();
    (bits.count_ones() == ones).then(|| u8::try_from(ones).ok()).flatten()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests;
