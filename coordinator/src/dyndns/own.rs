//! This host's own IPv6 address, as it is to be found from outside: there is no translation in between, and no keeper that
//! sees it.

use std::{
    fs,
    net::{Ipv6Addr, SocketAddr, UdpSocket},
};

/// Somewhere in the internet (RFC 3849): the system is asked for the way there, and nothing is sent.
const ANYWHERE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const ANY_PORT: u16 = 9;

/// Linux's list of addresses, where a service without the rest of `/proc` sees it: address, index, prefix length, scope and
/// flags as hexadecimal numbers, and the interface.
const LIST: &str = "/proc/self/net/if_inet6";
/// Flags of addresses that are not there to be found at: temporary (RFC 8981), duplicate, deprecated, tentative.
const NOT_LASTING: u32 = 0x01 | 0x08 | 0x20 | 0x40;

/// Returns the address, if this host has one that is reached from the internet.
pub(super) fn ipv6() -> Option<Ipv6Addr> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((ANYWHERE, ANY_PORT)).ok()?;
    let SocketAddr::V6(from) = socket.local_addr().ok()? else { return None };
    let list = fs::read_to_string(LIST).unwrap_or_default();
    is_global(*from.ip()).then(|| lasting(&list, *from.ip()).unwrap_or(*from.ip()))
}

/// Whether it is of the internet (RFC 4291, section 2.4, and the registry of what is handed out: 2000::/3).
pub(super) fn is_global(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xe000 == 0x2000
}

/// Returns the lasting address beside the one that this host sends from, which may be a temporary one: of the same
/// interface and prefix.
fn lasting(list: &str, from: Ipv6Addr) -> Option<Ipv6Addr> {
    let all: Vec<_> = list.lines().filter_map(parse_line).collect();
    let (_, _, interface) = all.iter().find(|(address, ..)| *address == from)?;
    let is_beside = |address: &Ipv6Addr| address.segments()[..4] == from.segments()[..4];
    let mut lasting = all.iter().filter(|(address, flags, other)| {
        other == interface && is_beside(address) && flags & NOT_LASTING == 0
    });
    lasting.next().map(|(address, ..)| *address)
}

fn parse_line(line: &str) -> Option<(Ipv6Addr, u32, &str)> {
    let mut words = line.split_whitespace();
    let address = Ipv6Addr::from(u128::from_str_radix(words.next()?, 16).ok()?);
    let flags = u32::from_str_radix(words.nth(3)?, 16).ok()?;
    Some((address, flags, words.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESSES: &str = "\
00000000000000000000000000000001 01 80 10 80       lo
20010db8000100000000000000000099 02 40 00 01     eth0
20010db8000100000000000000000007 02 40 00 80     eth0
20010db8000100000000000000000008 02 40 00 20     eth0
20010db8000200000000000000000009 02 40 00 80     eth0
20010db800010000000000000000000a 03 40 00 80    wlan0
fe80000000000000000000000000000b 02 40 20 80     eth0
nonsense
";

    #[test]
    fn the_lasting_address_is_said_and_not_the_temporary_one() {
        let of = |text: &str| lasting(ADDRESSES, text.parse().unwrap()).map(|found| found.to_string());
        assert_eq!(of("2001:db8:1::99").as_deref(), Some("2001:db8:1::7"));
        assert_eq!(of("2001:db8:1::7").as_deref(), Some("2001:db8:1::7"));
        assert_eq!(of("2001:db8:2::9").as_deref(), Some("2001:db8:2::9"), "of its own prefix");
        assert_eq!(of("2001:db8:1::a").as_deref(), Some("2001:db8:1::a"), "of its own interface");
        assert_eq!(of("2001:db8:9::1"), None);
    }

    #[test]
    fn addresses_of_the_internet_are_told_apart() {
        for (text, want) in [("2a00:1450::1", true), ("fd00::1", false), ("fe80::1", false), ("::1", false)] {
            assert_eq!(is_global(text.parse().unwrap()), want, "{text}");
        }
    }
}
