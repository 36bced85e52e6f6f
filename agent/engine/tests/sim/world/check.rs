//! What is checked of everything that comes out of an engine.

use std::net::{IpAddr, SocketAddr};

use mesh_proto::{
    demux::{DatagramKind, classify},
    relay::Frame,
};

use super::World;
use crate::{ledger::Sent, packet, trace::Line};

/// Length of a data message with nothing in it: a keepalive.
const EMPTY_DATA_LEN: usize = 32;
/// IPv4 and UDP headers.
const HEADERS: usize = 28;
/// First byte of a data message.
const TYPE_DATA: u8 = 4;
/// Data messages for one inner packet: it may be sent on two paths at once.
const MAX_COPIES: u64 = 2;

impl World {
    /// Checks a datagram of an engine's and counts it.
    ///
    /// An engine sends on nothing that came from a peer, unless it relays for others, and nothing into the mesh: inner packets that went in are all
    /// that data messages are made of.
    pub(super) fn check_transmit(&mut self, node: usize, to: SocketAddr, bytes: &[u8]) -> Result<(), String> {
        if is_forbidden(to) {
            return Err(format!("node {node} sends a datagram to {to}"));
        }
        let relayed = match Frame::decode(bytes) {
            Ok(Frame::Data { payload, .. }) if classify(bytes) == DatagramKind::Relay => Some(payload),
            Ok(_) | Err(_) => None,
        };
        let for_peer = match classify(bytes) {
            DatagramKind::WireGuard | DatagramKind::Disco => true,
            DatagramKind::Relay => relayed.is_some(),
            DatagramKind::Stun => false,
            DatagramKind::Quic | DatagramKind::Unknown => {
                return Err(format!("node {node} sends something unknown to {to}"));
            }
        };
        let message = relayed.unwrap_or(bytes);
        let meter = &mut self.nodes[node].meter;
        meter.bytes += (bytes.len() + HEADERS) as u64;
        if classify(bytes) == DatagramKind::Disco {
            meter.disco += 1;
            meter.probed.insert(to.ip());
        }
        *(if for_peer { &mut meter.to_peers } else { &mut meter.upkeep }) += 1;
        let is_sent_on = relayed.is_some() && self.nodes[node].lends;
        let meter = &mut self.nodes[node].meter;
        if for_peer && !is_sent_on && message.first() == Some(&TYPE_DATA) && message.len() > EMPTY_DATA_LEN {
            meter.data += 1;
        }
        if meter.data > MAX_COPIES * meter.packets {
            return Err(format!(
                "node {node} sent {} data messages for {} packets",
                meter.data, meter.packets
            ));
        }
        Ok(())
    }

    /// Checks an inner packet that comes out at a node: by the ledger, and by what the node's engine was told of
    /// who owns what. Returns its number and what was sent.
    pub(super) fn check_delivery(&mut self, node: usize, packet: &[u8]) -> Result<(u64, Sent), String> {
        let Some((source, destination, number)) = packet::parse(packet) else {
            return Err(format!("node {node} gets a packet that nobody sent: {packet:02x?}"));
        };
        self.trace.add(self.now, Line::PacketOut { node, number });
        let sent = self.ledger.deliver(number, node, self.now)?;
        let (receiver, sender) = (&self.nodes[node], self.nodes[sent.from].id);
        if !receiver.allowed_ips().iter().any(|net| net.contains(&IpAddr::V4(destination))) {
            return Err(format!(
                "packet {number} for {destination} came out at node {node}, which does not own that"
            ));
        }
        if !receiver.allowed_ips_of(sender).iter().any(|net| net.contains(&IpAddr::V4(source))) {
            return Err(format!("packet {number} came from {source}, which node {} does not own", sent.from));
        }
        self.nodes[node].note_traffic(self.now);
        Ok((number, sent))
    }
}

/// Whether an address is one to which no engine may ever send: inside the mesh, or none of a host's.
fn is_forbidden(to: SocketAddr) -> bool {
    let ip = to.ip();
    let special = match ip {
        IpAddr::V4(v4) => v4.is_broadcast() || matches!(v4.octets(), [10, 90 | 244, ..]),
        IpAddr::V6(_) => false,
    };
    special || ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || to.port() == 0
}
