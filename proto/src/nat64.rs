//! NAT64: IPv4 addresses written into IPv6 ones (RFC 6052), and the prefix found in what a resolver makes of a
//! well-known name (RFC 7050). No IO.
//!
//! A network without IPv4 may have a translator to it: packets to an IPv6 address under a certain prefix go to the IPv4
//! address that is written behind the prefix, in 32 bits that leave out bits 64 to 71:
//!
//! ```text
//! bits      0      32     40     48     56     64  72     80     88     96    128
//! /32       prefix | v4 (32)                   | 0 | suffix
//! /40       prefix        | v4 (24)            | 0 | (8)  | suffix
//! /48       prefix               | v4 (16)     | 0 | (16)        | suffix
//! /56       prefix                      | (8)  | 0 | (24)               | suffix
//! /64       prefix                             | 0 | v4 (32)                   | suffix
//! /96       prefix                                                      | v4 (32)
//! ```
//!
//! [`WELL_KNOWN_NAME`] has two IPv4 addresses and no IPv6 address. A resolver beside a translator (DNS64) makes IPv6
//! addresses of them, in which they are looked for at every length.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};

/// The name whose IPv4 addresses everybody knows.
pub const WELL_KNOWN_NAME: &str = "ipv4only.arpa";

/// Its addresses.
pub const WELL_KNOWN_ADDRESSES: [Ipv4Addr; 2] =
    [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];

/// The prefix that is the same everywhere (RFC 6052, section 2.1); only what has a meaning everywhere is written behind it.
const WELL_KNOWN_PREFIX: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0);

/// Lengths that a prefix may have.
const LENGTHS: [u8; 6] = [32, 40, 48, 56, 64, 96];

/// The byte that is left out (bits 64 to 71), which is 0.
const LEFT_OUT: usize = 8;

/// A prefix behind which IPv4 addresses are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Ipv6Net", into = "Ipv6Net")]
pub struct Nat64Prefix(Ipv6Net);

/// Why a prefix is none for NAT64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a NAT64 prefix is an IPv6 prefix of 32, 40, 48, 56, 64 or 96 bits, like 64:ff9b::/96")]
pub struct InvalidNat64Prefix;

impl TryFrom<Ipv6Net> for Nat64Prefix {
    type Error = InvalidNat64Prefix;

    fn try_from(net: Ipv6Net) -> Result<Self, InvalidNat64Prefix> {
        if LENGTHS.contains(&net.prefix_len()) { Ok(Self(net.trunc())) } else { Err(InvalidNat64Prefix) }
    }
}

impl From<Nat64Prefix> for Ipv6Net {
    fn from(prefix: Nat64Prefix) -> Self {
        prefix.0
    }
}

impl FromStr for Nat64Prefix {
    type Err = InvalidNat64Prefix;

    fn from_str(text: &str) -> Result<Self, InvalidNat64Prefix> {
        text.parse::<Ipv6Net>().map_err(|_| InvalidNat64Prefix)?.try_into()
    }
}

impl fmt::Display for Nat64Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Nat64Prefix {
    /// Writes an IPv4 address behind the prefix; `None` if that leads nowhere: to one host, to many, or with the
    /// well-known prefix into somebody's private network (RFC 6052, section 3.1).
    #[must_use]
    pub fn embed(self, v4: Ipv4Addr) -> Option<Ipv6Addr> {
        let is_special = v4.is_loopback()
            || v4.is_unspecified()
            || v4.is_multicast()
            || v4.is_broadcast()
            || v4.is_link_local();
        let is_local = v4.is_private() || is_shared(v4);
        if is_special || (is_local && self.is_well_known()) {
            return None;
        }
        let mut bytes = self.0.network().octets();
        for (at, byte) in self.places().zip(v4.octets()) {
            bytes[at] = byte;
        }
        Some(bytes.into())
    }

    /// Writes the address of an IPv4 endpoint behind the prefix, as [`Self::embed`].
    #[must_use]
    pub fn embed_endpoint(self, endpoint: SocketAddr) -> Option<SocketAddr> {
        match endpoint.ip() {
            IpAddr::V4(v4) => Some(SocketAddr::new(self.embed(v4)?.into(), endpoint.port())),
            IpAddr::V6(_) => None,
        }
    }

    /// Reads the IPv4 address behind the prefix; `None` if the address is not under it.
    #[must_use]
    pub fn extract(self, v6: Ipv6Addr) -> Option<Ipv4Addr> {
        if !self.0.contains(&v6) {
            return None;
        }
        let bytes = v6.octets();
        let mut v4 = [0; 4];
        for (byte, at) in v4.iter_mut().zip(self.places()) {
            *byte = bytes[at];
        }
        Some(v4.into())
    }

    /// Finds prefixes in the IPv6 addresses of [`WELL_KNOWN_NAME`], in their order and each once.
    ///
    /// Either well-known address says where the prefix ends, if there is nothing else behind it; at another length there
    /// is: the address itself.
    #[must_use]
    pub fn find(addresses: impl IntoIterator<Item = Ipv6Addr>) -> Vec<Self> {
        let mut found = Vec::new();
        for address in addresses {
            let prefix = LENGTHS.into_iter().find_map(|len| known_at(address, len));
            found.extend(prefix.filter(|prefix| !found.contains(prefix)));
        }
        found
    }

    fn is_well_known(self) -> bool {
        self.0.network() == WELL_KNOWN_PREFIX
    }

    /// The indexes of the four bytes.
    fn places(self) -> impl Iterator<Item = usize> {
        let first = usize::from(self.0.prefix_len() / 8);
        // A prefix of 96 bits has the byte that is left out within itself.
        (first..).filter(move |at| *at != LEFT_OUT || first > LEFT_OUT).take(4)
    }
}

/// Reads an address as one under a prefix of this length that has a well-known address behind it.
fn known_at(address: Ipv6Addr, len: u8) -> Option<Nat64Prefix> {
    let prefix = Nat64Prefix(Ipv6Net::new(address, len).ok()?.trunc());
    let v4 = prefix.extract(address)?;
    // Nothing else is in it.
    let is_whole = prefix.embed(v4) == Some(address);
    (is_whole && WELL_KNOWN_ADDRESSES.contains(&v4)).then_some(prefix)
}

/// Whether an address is one of a carrier's own (RFC 6598).
fn is_shared(v4: Ipv4Addr) -> bool {
    let [a, b, ..] = v4.octets();
    a == 100 && (64..128).contains(&b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Nat64Prefix {
        text.parse().unwrap()
    }

    fn v6(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    /// RFC 6052, section 2.4.
    const EXAMPLES: [(&str, &str); 7] = [
        ("2001:db8::/32", "2001:db8:c000:221::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
        ("64:ff9b::/96", "64:ff9b::192.0.2.33"),
    ];

    #[test]
    fn the_examples_of_the_standard_are_written_and_read() {
        let v4 = Ipv4Addr::new(192, 0, 2, 33);
        for (net, written) in EXAMPLES {
            assert_eq!(prefix(net).embed(v4), Some(v6(written)), "{net}");
            assert_eq!(prefix(net).extract(v6(written)), Some(v4), "{net}");
            assert_eq!(prefix(net).extract(v6("2001:db9::1")), None, "{net}");
            assert_eq!(prefix(net).to_string(), net);
        }
        let endpoint = prefix("64:ff9b::/96").embed_endpoint("192.0.2.33:7".parse().unwrap());
        assert_eq!(endpoint, Some("[64:ff9b::c000:221]:7".parse().unwrap()));
        assert_eq!(prefix("64:ff9b::/96").embed_endpoint("[::1]:7".parse().unwrap()), None);
    }

    #[test]
    fn what_is_no_prefix_is_refused() {
        for bad in ["64:ff9b::/95", "::/0", "192.0.2.0/24", "64:ff9b::", "2001:db8::/128", ""] {
            assert!(bad.parse::<Nat64Prefix>().is_err(), "{bad}");
        }
        assert_eq!(prefix("64:ff9b::1/96"), prefix("64:ff9b::/96"));
    }

    #[test]
    fn private_addresses_are_not_behind_the_well_known_prefix() {
        for local in ["10.0.0.1", "192.168.1.1", "100.64.0.1"] {
            let local = local.parse().unwrap();
            assert_eq!(prefix("64:ff9b::/96").embed(local), None);
            assert!(prefix("2001:db8:64::/96").embed(local).is_some(), "a network of its own knows them");
        }
        for special in ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "169.254.1.1"] {
            assert_eq!(prefix("2001:db8:64::/96").embed(special.parse().unwrap()), None, "{special}");
        }
    }

    #[test]
    fn prefixes_are_found_at_every_length() {
        for (net, _) in EXAMPLES {
            let both = WELL_KNOWN_ADDRESSES.map(|v4| prefix(net).embed(v4).unwrap());
            assert_eq!(Nat64Prefix::find(both), [prefix(net)], "{net}");
            assert_eq!(Nat64Prefix::find(both.into_iter().take(1)), [prefix(net)], "{net}, one alone");
        }
        let two = ["64:ff9b::/96", "2001:db8:1::/48"].map(prefix);
        let all: Vec<_> =
            two.iter().flat_map(|net| WELL_KNOWN_ADDRESSES.map(|v4| net.embed(v4).unwrap())).collect();
        assert_eq!(Nat64Prefix::find(all), two);
    }

    #[test]
    fn what_holds_no_well_known_address_is_no_prefix() {
        let strangers =
            ["2001:db8::1", "64:ff9b::192.0.2.1", "64:ff9b::192.0.0.172", "2001:db8:c000:aa::1", "::1"];
        assert_eq!(Nat64Prefix::find(strangers.map(v6)), []);
        assert_eq!(Nat64Prefix::find([]), []);
    }

    #[test]
    fn a_prefix_that_looks_like_a_well_known_address_itself_is_no_riddle() {
        for net in ["2001:db8:c000:aa::/96", "2001:db8:c000:aa::/64", "c000:aa::/32", "2001:db8:c0:0:aa::/96"]
        {
            let both = WELL_KNOWN_ADDRESSES.map(|v4| prefix(net).embed(v4).unwrap());
            assert_eq!(Nat64Prefix::find(both), [prefix(net)], "{net}");
        }
    }
}
