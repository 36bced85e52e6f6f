//! Bytes as macOS writes them, and bytes as nobody should.

use proptest::prelude::*;

use super::*;

/// `ifconfig en0 192.168.1.7/24`: a mask that is cut short, the interface with its name, the address, the broadcast.
const NEW_V4: &str = "5000 05 0c b4000000 00000000 0400 0000 00000000
    07020000 ffffff00
    14120400 06030600 656e3000 00000000 00000000
    10020000 c0a80107 00000000 00000000
    10020000 c0a801ff 00000000 00000000";

/// The loss of `fe80::1` on `en0`, with the link's index in the address.
const GONE_V6: &str = "5c00 05 0d 34000000 00000000 0400 0000 00000000
    1c1e0000 00000000 ffffffff ffffffff 00000000 00000000 00000000
    10120400 06030000 656e3000 00000000
    1c1e0000 00000000 fe800004 00000000 00000000 00000001 00000000";

/// The default route over 192.168.1.1: its mask is empty, of length nought.
const NEW_DEFAULT: &str =
    "8000 05 01 0400 0000 03080000 07000000 39050000 01000000 00000000 00000000 00000000
    00000000 00000000 00000000 00000000 00000000 00000000 00000000
    00000000 00000000 00000000 00000000 00000000 00000000 00000000
    10020000 00000000 00000000 00000000
    10020000 c0a80101 00000000 00000000
    00000000";

/// A neighbour's hardware address, learnt: 192.168.1.9 is at a link-layer address.
const NEIGHBOUR: &str = "8000 05 01 0400 0000 05040000 03000000 00000000 00000000 00000000 00000000 00000000
    00000000 00000000 00000000 00000000 00000000 00000000 00000000
    00000000 00000000 00000000 00000000 00000000 00000000 00000000
    10020000 c0a80109 00000000 00000000
    14120400 06000600 00000000 00000000 00000000";

/// 10.0.0.0/8 is gone: the mask has one byte, and says nothing of its family.
const GONE_ROUTE: &str = "8400 05 02 0400 0000 03080000 07000000 39050000 02000000 00000000 00000000 00000000
    00000000 00000000 00000000 00000000 00000000 00000000 00000000
    00000000 00000000 00000000 00000000 00000000 00000000 00000000
    10020000 0a000000 00000000 00000000
    10020000 c0a80101 00000000 00000000
    050000ff ff000000";

fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = hex::decode(text.split_whitespace().collect::<String>()).unwrap();
    // What stands there is what it takes; checked by whoever counts.
    let len = u16::try_from(bytes.len()).unwrap();
    bytes[..2].copy_from_slice(&len.to_le_bytes());
    bytes
}

/// A link's message with these flags.
fn link(flags: u32) -> Vec<u8> {
    let mut message = vec![0; LINK_HEADER];
    message[..4].copy_from_slice(&[112, 0, RTM_VERSION, RTM_IFINFO]);
    message[8..12].copy_from_slice(&flags.to_le_bytes());
    message[12] = 4;
    message
}

fn all(bytes: &[u8]) -> Vec<Result<Message, InvalidMessage>> {
    parse(bytes).collect()
}

fn one(bytes: &[u8]) -> Message {
    let mut all = all(bytes);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn addresses_come_and_go() {
    let new = one(&bytes(NEW_V4));
    let want = Message::Address { index: 4, address: Some(ip("192.168.1.7")), change: Change::Added };
    assert_eq!((new.news(), new), (Some(News::Other), want));
    let gone = one(&bytes(GONE_V6));
    let want = Message::Address { index: 4, address: Some(ip("fe80::1")), change: Change::Removed };
    assert_eq!((gone.news(), gone), (Some(News::Lost(4)), want));
}

#[test]
fn routes_come_and_go() {
    let new = one(&bytes(NEW_DEFAULT));
    let want = Message::Route {
        index: 4,
        flags: 0x803,
        destination: Some(ip("0.0.0.0")),
        prefix_len: Some(0),
        gateway: Some(ip("192.168.1.1")),
        change: Change::Added,
    };
    assert_eq!((new.news(), new), (Some(News::WayOut), want));
    let gone = one(&bytes(GONE_ROUTE));
    assert!(
        matches!(&gone, Message::Route { destination, prefix_len: Some(8), change: Change::Removed, .. }
            if *destination == Some(ip("10.0.0.0"))),
        "{gone:?}"
    );
}

#[test]
fn a_neighbour_is_no_news() {
    let neighbour = one(&bytes(NEIGHBOUR));
    assert!(matches!(neighbour, Message::Route { gateway: None, prefix_len: None, .. }), "{neighbour:?}");
    assert_eq!(neighbour.news(), None);
}

#[test]
fn a_link_is_lost_without_a_carrier_or_when_it_is_down() {
    for (flags, want) in [
        (IFF_UP | IFF_RUNNING, News::Other),
        (IFF_UP, News::Lost(4)),
        (IFF_RUNNING, News::Lost(4)),
        (0, News::Lost(4)),
    ] {
        assert_eq!(one(&link(flags)).news(), Some(want), "{flags:x}");
    }
}

#[test]
fn what_is_of_no_interest_is_left_out() {
    // RTM_MISS, and a type that nobody has heard of.
    for kind in [0x7, 0xff] {
        let message = one(&[4, 0, RTM_VERSION, kind]);
        assert_eq!((message.news(), message), (None, Message::Other(kind)));
    }
    assert_eq!(all(&[4, 0, 4, RTM_ADD]), [Err(InvalidMessage::Version(4))]);
}

#[test]
fn several_messages_are_read_one_after_the_other() {
    let mut several = [bytes(NEW_V4), vec![8, 0, 9, 9, 0, 0, 0, 0], link(0), bytes(NEW_DEFAULT)].concat();
    let read = all(&several);
    assert_eq!(read.len(), 4);
    assert_eq!(read[1], Err(InvalidMessage::Version(9)), "its length is believed");
    assert!(read[3].is_ok());
    several.truncate(several.len() - 1);
    assert_eq!(all(&several)[3], Err(InvalidMessage::Truncated));
}

#[test]
fn lengths_that_lead_nowhere_end_it() {
    for len in [0u16, 1, 3, 5, u16::MAX] {
        let mut message = vec![0, 0, RTM_VERSION, RTM_ADD];
        message[..2].copy_from_slice(&len.to_le_bytes());
        assert_eq!(all(&message), [Err(InvalidMessage::Truncated)], "{len}");
    }
    assert_eq!(all(&[4]), [Err(InvalidMessage::Truncated)]);
    assert_eq!(all(&[]), []);
}

#[test]
fn an_address_that_is_longer_than_the_message_is_refused() {
    let mut message = bytes(NEW_V4);
    message[ADDRESS_HEADER] = 255;
    assert_eq!(all(&message), [Err(InvalidMessage::Address)]);
    // One that says to have no length takes its room all the same.
    let mut message = bytes(NEW_DEFAULT);
    message[ROUTE_HEADER] = 0;
    assert!(matches!(one(&message), Message::Route { destination: None, .. }));
}

#[test]
fn every_header_that_is_cut_short_is_refused() {
    for whole in [bytes(NEW_V4), bytes(GONE_V6), bytes(NEW_DEFAULT), link(1)] {
        for len in COMMON..whole.len() {
            let mut cut = whole[..len].to_vec();
            cut[..2].copy_from_slice(&u16::try_from(len).unwrap().to_le_bytes());
            let read = all(&cut);
            assert_eq!(read.len(), 1);
            let header = match whole[3] {
                RTM_IFINFO => LINK_HEADER,
                RTM_NEWADDR | RTM_DELADDR => ADDRESS_HEADER,
                _ => ROUTE_HEADER,
            };
            assert!(len >= header || read[0] == Err(InvalidMessage::Truncated), "{len} of {whole:?}");
        }
    }
}

#[test]
fn masks_are_counted() {
    let v4 = ip("10.0.0.0");
    for (mask, want) in [
        (&[][..], Some(0)),
        (&[0, 0, 0, 0], Some(0)),
        (&[5, 0, 0, 0, 255], Some(8)),
        (&[8, 255, 0, 0, 255, 255, 254, 0], Some(23)),
        (&[8, 0, 0, 0, 255, 255, 255, 255], Some(32)),
        (&[12, 0, 0, 0, 255, 255, 255, 255, 255], Some(32)),
        (&[8, 0, 0, 0, 255, 0, 255, 0], None),
    ] {
        assert_eq!(prefix_len(mask, v4), want, "{mask:?}");
    }
    let long = [[28, 30, 0, 0, 0, 0, 0, 0].as_slice(), &[255; 6]].concat();
    assert_eq!(prefix_len(&long, ip("2001:db8::")), Some(48));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever comes, reading ends, and takes no more than there is.
    #[test]
    fn nothing_is_read_beyond_what_is_there(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(all(&bytes).len() <= bytes.len() / COMMON + 1);
    }

    /// Messages with some bytes changed: most of their headers make sense.
    #[test]
    fn changed_messages_are_read_or_refused(
        which in 0..5usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        end in any::<prop::sample::Index>(),
    ) {
        let whole = [NEW_V4, GONE_V6, NEW_DEFAULT, NEIGHBOUR, GONE_ROUTE];
        let mut message = [bytes(whole[which]), link(1)].concat();
        for (at, value) in changes {
            let at = at.index(message.len());
            message[at] = value;
        }
        message.truncate(end.index(message.len() + 1));
        for read in parse(&message).flatten() {
            let _ = read.news();
        }
    }
}
