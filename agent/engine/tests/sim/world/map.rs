//! Who owns which addresses, and when each node learns of it.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use ipnet::IpNet;
use mesh_engine::{command::Command, config::PeerConfig};

use super::{Event, World};

/// A change of the map has reached every node after this time.
const MAP_DELAY: Duration = Duration::from_secs(2);

impl World {
    /// Tells every node who its peers are and what they own, before it is started.
    pub(crate) fn distribute_map(&mut self) {
        for node in 0..self.nodes.len() {
            (self.nodes[node].ranges, self.nodes[node].peers) = self.map_for(node);
        }
    }

    /// Gives a range to another node. The nodes learn of it one after the other, in any order.
    pub(crate) fn move_range(&mut self, range: usize, to: usize) {
        self.ranges[range].1 = to;
        self.note(format!("{} is node {to}'s", self.ranges[range].0));
        for node in 0..self.nodes.len() {
            let at = self.now + self.rng.duration(Duration::ZERO..MAP_DELAY);
            self.queue.push(at, Event::Map(node));
        }
    }

    /// Returns how many ranges there are.
    pub(crate) fn range_count(&self) -> usize {
        self.ranges.len()
    }

    /// A node learns of the map as it is now.
    pub(super) fn apply_map(&mut self, node: usize) {
        let (ranges, peers) = self.map_for(node);
        let kept: Vec<_> =
            ranges.iter().filter(|range| self.nodes[node].ranges.contains(range)).copied().collect();
        // What is given away goes first, what is got comes last: so that no prefix ever has two owners.
        for (own, peers) in [(kept, None), (ranges, Some(peers))] {
            if let Some(peers) = peers {
                self.nodes[node].peers.clone_from(&peers);
                self.command(node, Command::SetPeers(peers));
            }
            self.nodes[node].ranges = own;
            self.command(node, Command::SetAllowedIps(self.nodes[node].allowed_ips()));
        }
    }

    /// Draws an address in a range that a node has, as its engine was told; its own address where it has none.
    pub(super) fn source_in_range(&mut self, node: usize) -> Ipv4Addr {
        let ranges = self.nodes[node].ranges.clone();
        self.address_in(&ranges, node)
    }

    /// Draws an address in a range that a node has, as the coordinator has it; its own address where it has none.
    pub(super) fn destination_in_range(&mut self, node: usize) -> Ipv4Addr {
        let (ranges, _) = self.map_for(node);
        self.address_in(&ranges, node)
    }

    /// Draws an address in the range with this number.
    pub(super) fn destination_in(&mut self, range: usize) -> Ipv4Addr {
        let (net, owner) = self.ranges[range];
        self.address_in(&[net], owner)
    }

    fn address_in(&mut self, ranges: &[IpNet], node: usize) -> Ipv4Addr {
        if ranges.is_empty() {
            return self.nodes[node].address;
        }
        match self.rng.pick(ranges).addr() {
            IpAddr::V4(v4) => {
                let host = u32::try_from(self.rng.below(256)).expect("small");
                Ipv4Addr::from(u32::from(v4) + host)
            }
            IpAddr::V6(_) => self.nodes[node].address,
        }
    }

    fn map_for(&self, node: usize) -> (Vec<IpNet>, Vec<PeerConfig>) {
        let ranges_of = |node| -> Vec<IpNet> {
            self.ranges.iter().filter(|(_, owner)| *owner == node).map(|(range, _)| *range).collect()
        };
        let peers = (0..self.nodes.len()).filter(|peer| *peer != node);
        let peers = peers.map(|peer| self.nodes[peer].as_peer(&ranges_of(peer))).collect();
        (ranges_of(node), peers)
    }
}
