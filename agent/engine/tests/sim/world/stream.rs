//! Byte streams to relays, for networks that let no UDP out.
//!
//! A stream is reliable, ordered, and as slow as the lines between. The agent's control client changes the carrier a
//! little after UDP is blocked, and goes back some time after it is let through again; the channel stays.

use std::{net::SocketAddr, time::Duration};

use mesh_engine::{batch::Via, config::RelayCarrier};
use mesh_proto::netmap::RelayId;

use super::{Event, Input, World};
use crate::net::HostId;

/// So long after UDP is blocked the streams are there: nothing is answered, and a stream is opened.
const NOTICED: Duration = Duration::from_millis(2500);
/// UDP is tried again this often.
const TRIED_AGAIN: Duration = Duration::from_secs(60);
/// By such addresses a relay knows streams.
const STREAMS: [u8; 3] = [240, 0, 0];

/// Something that happens on a stream.
pub(super) enum Message {
    Up { node: usize, relay: RelayId, bytes: Vec<u8> },
    Down { node: usize, relay: RelayId, bytes: Vec<u8> },
    Carry { node: usize, life: u64 },
}

/// Returns whose stream an address stands for.
pub(super) fn node_of(address: SocketAddr) -> Option<usize> {
    match address {
        SocketAddr::V4(v4) if v4.ip().octets()[..3] == STREAMS => Some(usize::from(v4.ip().octets()[3])),
        SocketAddr::V4(_) | SocketAddr::V6(_) => None,
    }
}

fn address_of(node: usize) -> SocketAddr {
    let [a, b, c] = STREAMS;
    ([a, b, c, u8::try_from(node).expect("few nodes")], 443).into()
}

impl World {
    /// Says whether UDP gets in and out where a node is; the agent finds out.
    pub(crate) fn set_blocked(&mut self, node: usize, blocked: bool) {
        if std::mem::replace(&mut self.nodes[node].blocked, blocked) == blocked {
            return;
        }
        self.note(format!("node {node}: UDP is {}", if blocked { "blocked" } else { "let through" }));
        let wait = if blocked { NOTICED } else { self.rng.duration(Duration::from_secs(1)..TRIED_AGAIN) };
        let life = self.nodes[node].life;
        self.queue.push(self.now + wait, Event::Stream(Message::Carry { node, life }));
    }

    /// Returns what carries a node's frames to a relay, if it opens a channel now.
    pub(super) fn carrier(&self, node: usize, relay: usize) -> RelayCarrier {
        match self.nodes[node].blocked {
            true => RelayCarrier::Stream,
            false => RelayCarrier::Udp(vec![self.relays[relay].address]),
        }
    }

    /// An engine sends on a stream.
    pub(super) fn stream_up(&mut self, node: usize, relay: RelayId, bytes: Vec<u8>) {
        let index = self.relay_index(relay);
        if let Err(why) = self.check_transmit(node, self.relays[index].address, &bytes) {
            return self.fail(why);
        }
        if self.reaches(node, self.relays[index].host) && !self.nodes[node].asleep {
            let at = self.now + self.stream_latency(node, index);
            self.queue.push(at, Event::Stream(Message::Up { node, relay, bytes }));
        }
    }

    /// A relay sends on a stream.
    pub(super) fn stream_down(&mut self, node: usize, host: HostId, bytes: Vec<u8>) {
        let index = self.relays.iter().position(|relay| relay.host == host).expect("a relay sends it");
        if self.reaches(node, host) {
            let (relay, at) = (self.relays[index].id, self.now + self.stream_latency(node, index));
            self.queue.push(at, Event::Stream(Message::Down { node, relay, bytes }));
        }
    }

    pub(super) fn handle_stream(&mut self, message: Message) {
        match message {
            Message::Up { node, relay, bytes } => {
                let relay = self.relay_index(relay);
                let relay = &mut self.relays[relay];
                let (host, port) = (relay.host, relay.address.port());
                let answer = if relay.up { relay.handle_frame(address_of(node), &bytes) } else { None };
                match answer.map(|(to, bytes)| (to, node_of(to), bytes)) {
                    Some((_, Some(node), bytes)) => self.stream_down(node, host, bytes),
                    Some((destination, None, bytes)) => {
                        self.launch(crate::net::Outgoing { host, port, destination, bytes });
                    }
                    None => {}
                }
            }
            Message::Down { node, relay, bytes } => {
                self.drive(node, Input::Datagram { via: Via::Stream(relay), bytes });
            }
            Message::Carry { node, life } => {
                if self.nodes[node].life != life || self.nodes[node].engine.is_none() {
                    return;
                }
                for index in 0..self.relays.len() {
                    let (id, carrier) = (self.relays[index].id, self.carrier(node, index));
                    if let Some(config) = self.nodes[node].relays.get_mut(&id) {
                        config.carrier = carrier;
                    }
                }
                self.tell_relays(node);
            }
        }
    }

    fn stream_latency(&self, node: usize, relay: usize) -> Duration {
        let delay =
            |host| self.net.uplink_of(host).map_or(Duration::ZERO, |up| self.net.link_profile(up).delay);
        delay(self.nodes[node].host) + delay(self.relays[relay].host)
    }
}
