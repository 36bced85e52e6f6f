//! What was damaged before it entered the tunnel comes out damaged, and is refused by who receives it.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
};

use mesh_lab::{Host, capture::Kind, pods::Offloading};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};

use crate::rig::{self, Rig, checksum_errors, finish};

/// Datagrams of one stream.
const DATAGRAMS: usize = 200;
/// Every so many of them is damaged.
const DAMAGED: usize = 9;
const PAYLOAD: usize = 500;
const UDP: u8 = 17;
const UDP_HEADER: usize = 8;

#[test]
fn damaged_datagrams_are_never_repaired_with_all_offloads() {
    check("all", Offloading::On);
}

#[test]
fn damaged_datagrams_are_never_repaired_without_offloads() {
    check("none", Offloading::On);
}

#[test]
fn damaged_datagrams_are_never_repaired_for_pods_without_offloads() {
    check("all", Offloading::Off);
}

fn check(offloads: &str, offloading: Offloading) {
    let rig = Rig::start(offloads, offloading);
    let damaged = (0..DATAGRAMS).filter(|index| is_damaged(*index)).count() as u64;
    for [from, to] in rig.pairs() {
        let what = format!("{offloads}, {offloading:?}: {} to {}", from.0.name(), to.1);
        let receiver = rig::socket(to.0, to.1);
        let port = receiver.local_addr().unwrap().port();
        let captures = rig.capture_all(|_| false);
        let before = checksum_errors(to.0);
        send(from, SocketAddr::new(to.1, port));
        assert_only_whole_ones_arrive(&receiver, &what);
        assert_eq!(checksum_errors(to.0) - before, damaged, "{what}: what the receiver has refused");
        let place = if to.0.name() == "b" { "b mesh0" } else { "b-pod eth0" };
        let seen = finish(captures).into_iter().find(|(name, _)| name == place).unwrap().1;
        assert_eq!((seen.wrong, seen.missed), (damaged, 0), "{what}: {place} {seen:?}");
        let kind = if to.1.is_ipv4() { Kind::UdpV4 } else { Kind::UdpV6 };
        assert!(seen.count(kind) > 0, "{what}: {seen:?}");
    }
    rig.mesh.stop().unwrap();
}

fn is_damaged(index: usize) -> bool {
    index % DAMAGED == 4
}

fn payload(index: usize) -> Vec<u8> {
    vec![index as u8; PAYLOAD]
}

/// Writes datagrams with their headers and checksums, some of them damaged after that.
fn send(from: (&Host, IpAddr), to: SocketAddr) {
    let (family, header) = if to.is_ipv4() { (AddressFamily::Inet, 20) } else { (AddressFamily::Inet6, 40) };
    let open = || socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
    let raw: OwnedFd = from.0.netns().enter(open).unwrap().unwrap();
    for index in 0..DATAGRAMS {
        let mut packet = datagram(from.1, to, &payload(index));
        if is_damaged(index) {
            packet[header + UDP_HEADER + 100] ^= 0x10;
        }
        let to = SockaddrStorage::from(SocketAddr::new(to.ip(), 0));
        sendto(raw.as_raw_fd(), &packet, &to, MsgFlags::empty()).unwrap();
    }
}

fn assert_only_whole_ones_arrive(receiver: &UdpSocket, what: &str) {
    let mut buffer = [0; 2048];
    for index in (0..DATAGRAMS).filter(|index| !is_damaged(*index)) {
        let len = receiver.recv(&mut buffer).unwrap_or_else(|error| panic!("{what}, {index}: {error}"));
        assert!(buffer[..len] == payload(index), "{what}: datagram {index} is another");
    }
}

/// A whole UDP packet.
fn datagram(from: IpAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let len = (UDP_HEADER + payload.len()) as u16;
    let mut packet = match (from, to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            // The kernel fills in the header's checksum, and the identification where it is zero.
            let total = (20 + len).to_be_bytes();
            let start = [0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, UDP, 0, 0];
            [&start[..], &from.octets(), &to.octets()].concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let len = len.to_be_bytes();
            [&[0x60, 0, 0, 0, len[0], len[1], UDP, 64], &from.octets()[..], &to.octets()].concat()
        }
        _ => panic!("one family"),
    };
    let header = packet.len();
    packet.extend([0x12, 0x34]);
    packet.extend(to.port().to_be_bytes());
    packet.extend(len.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    let addresses = if header == 20 { 12..20 } else { 8..40 };
    let sum = sum(&packet[addresses]) + sum(&packet[header..]) + u32::from(UDP) + u32::from(len);
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    packet[header + 6..header + 8].copy_from_slice(&checksum.to_be_bytes());
    packet
}

fn sum(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    bytes.chunks(2).map(word).sum()
}
