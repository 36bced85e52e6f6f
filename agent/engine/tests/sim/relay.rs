//! A model relay: `mesh_proto::relay` to the letter, and nothing more.

use std::{collections::BTreeMap, net::SocketAddr};

use mesh_proto::{
    netmap::{NodeId, RelayId},
    relay::{self, CHANNEL_KEY_LEN, ChannelId, Frame},
};

use crate::{net::HostId, rng::Rng};

/// A relay and its channels.
pub(crate) struct Relay {
    pub(crate) id: RelayId,
    pub(crate) host: HostId,
    pub(crate) address: SocketAddr,
    pub(crate) up: bool,
    pub(crate) forwarded: u64,
    channels: BTreeMap<ChannelId, Channel>,
    nodes: BTreeMap<NodeId, ChannelId>,
    rng: Rng,
}

struct Channel {
    node: NodeId,
    key: [u8; CHANNEL_KEY_LEN],
    counter: u64,
    bound: Option<SocketAddr>,
}

impl Relay {
    /// Makes a relay without channels.
    pub(crate) fn new(id: RelayId, host: HostId, address: SocketAddr, rng: Rng) -> Self {
        Self {
            id,
            host,
            address,
            up: true,
            forwarded: 0,
            channels: BTreeMap::new(),
            nodes: BTreeMap::new(),
            rng,
        }
    }

    /// Opens a channel for a node and closes its older one.
    pub(crate) fn open(&mut self, node: NodeId) -> (ChannelId, [u8; CHANNEL_KEY_LEN]) {
        let channel = ChannelId(u64::from_be_bytes(self.rng.bytes()));
        let key = self.rng.bytes();
        if let Some(old) = self.nodes.insert(node, channel) {
            self.channels.remove(&old);
        }
        self.channels.insert(channel, Channel { node, key, counter: 0, bound: None });
        (channel, key)
    }

    /// Stops it; every channel is lost.
    pub(crate) fn kill(&mut self) {
        self.up = false;
        self.channels.clear();
        self.nodes.clear();
    }

    /// Returns where a node's channel is bound.
    pub(crate) fn bound_at(&self, node: NodeId) -> Option<SocketAddr> {
        self.channels.get(self.nodes.get(&node)?)?.bound
    }

    /// Whether a node has a bound channel.
    pub(crate) fn is_bound(&self, node: NodeId) -> bool {
        let channel = self.nodes.get(&node).and_then(|channel| self.channels.get(channel));
        channel.is_some_and(|channel| channel.bound.is_some())
    }

    /// Takes a frame, and returns what is sent for it and to where.
    pub(crate) fn handle_frame(
        &mut self,
        source: SocketAddr,
        datagram: &[u8],
    ) -> Option<(SocketAddr, Vec<u8>)> {
        match Frame::decode(datagram).ok()? {
            Frame::Bind { channel, counter, mac } => {
                let Some(known) = self.channels.get_mut(&channel) else {
                    return Some((source, Frame::UnknownChannel { channel }.encode()));
                };
                if relay::bind_mac(&known.key, channel, counter) != mac || counter <= known.counter {
                    return None;
                }
                known.counter = counter;
                known.bound = Some(source);
                Some((source, Frame::Bound { channel, counter, observed: source }.encode()))
            }
            Frame::Data { peer, channel, payload } => {
                let Some(known) = self.channels.get(&channel) else {
                    return Some((source, Frame::UnknownChannel { channel }.encode()));
                };
                if known.bound != Some(source) {
                    return None;
                }
                let onward = *self.nodes.get(&peer)?;
                let bound = self.channels.get(&onward)?.bound?;
                self.forwarded += 1;
                Some((bound, Frame::Data { peer: known.node, channel: onward, payload }.encode()))
            }
            Frame::Bound { .. } | Frame::UnknownChannel { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([198, 51, 100, 1], port))
    }

    fn bind(relay: &mut Relay, channel: (ChannelId, [u8; 32]), counter: u64, from: SocketAddr) -> bool {
        let mac = relay::bind_mac(&channel.1, channel.0, counter);
        let frame = Frame::Bind { channel: channel.0, counter, mac }.encode();
        let answer = relay.handle_frame(from, &frame);
        let bound = Frame::Bound { channel: channel.0, counter, observed: from }.encode();
        answer == Some((from, bound))
    }

    fn data(peer: u32, channel: ChannelId) -> Vec<u8> {
        Frame::Data { peer: NodeId(peer), channel, payload: b"sealed" }.encode()
    }

    #[test]
    fn data_goes_between_bound_channels_only() {
        let host = crate::net::Net::new(Rng::new(1)).add_host(None);
        let mut relay = Relay::new(RelayId(0), host, at(1), Rng::new(2));
        let (a, b) = (relay.open(NodeId(1)), relay.open(NodeId(2)));
        assert_eq!(relay.handle_frame(at(10), &data(2, a.0)), None, "not bound yet");
        assert!(bind(&mut relay, a, 1, at(10)));
        assert_eq!(relay.handle_frame(at(10), &data(2, a.0)), None, "the peer is not bound yet");
        assert!(bind(&mut relay, b, 1, at(20)));
        assert_eq!(relay.handle_frame(at(10), &data(2, a.0)), Some((at(20), data(1, b.0))));
        assert_eq!(relay.handle_frame(at(11), &data(2, a.0)), None, "from another address");
        assert!(!bind(&mut relay, a, 1, at(11)), "a counter that does not rise");
        assert!(bind(&mut relay, a, 2, at(11)));
        assert_eq!(relay.handle_frame(at(11), &data(2, a.0)), Some((at(20), data(1, b.0))));
        relay.kill();
        let unknown = Frame::UnknownChannel { channel: a.0 }.encode();
        assert_eq!(relay.handle_frame(at(11), &data(2, a.0)), Some((at(11), unknown)));
    }
}
