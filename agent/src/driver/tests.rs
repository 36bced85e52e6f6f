//! Two drivers with real engines and sockets; a pair of unix sockets stands for each TUN.

use std::{io, os::unix::net::UnixDatagram, process::Command as Program, time::Duration};

use mesh_engine::{
    batch::{Offload, TunFrame},
    config::{PeerConfig, PrivateKey, PunchLimits},
};
use mesh_proto::{
    candidate::{Candidate, CandidateKind},
    key::PublicKey,
    netmap::NodeId,
};
use tokio::time::timeout;

use super::*;
use crate::{io::offload::Offloads, netns::isolated};

const DEADLINE: Duration = Duration::from_secs(10);

impl Tun for UnixDatagram {
    fn try_read<'b>(&self, buffer: &'b mut [u8]) -> io::Result<TunFrame<'b>> {
        let len = self.recv(buffer)?;
        Ok(TunFrame { packet: &buffer[..len], offload: Offload::None })
    }

    fn try_write(&self, packet: &[u8]) -> io::Result<()> {
        self.send(packet).map(drop)
    }
}

/// A driver, and the host's side of its TUN.
struct Node {
    id: u8,
    handle: EngineHandle<UnixDatagram>,
    events: Events,
    host: tokio::net::UnixDatagram,
    public_key: PublicKey,
    port: u16,
}

impl Node {
    fn start(id: u8, cancel: &CancellationToken, tracker: &TaskTracker) -> Self {
        Self::start_at(id, 0, cancel, tracker)
    }

    fn start_at(id: u8, port: u16, cancel: &CancellationToken, tracker: &TaskTracker) -> Self {
        Self::start_with(id, port, (NonZeroU32::MIN, Offloads::ALL), cancel, tracker)
    }

    fn start_with(
        id: u8,
        port: u16,
        (engines, offloads): (NonZeroU32, Offloads),
        cancel: &CancellationToken,
        tracker: &TaskTracker,
    ) -> Self {
        let secret = x25519_dalek::StaticSecret::from([id; 32]);
        let public_key = PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes());
        let (tun, host) = UnixDatagram::pair().unwrap();
        tun.set_nonblocking(true).unwrap();
        host.set_nonblocking(true).unwrap();
        let udp = UdpSockets::bind_group(port, offloads, engines).unwrap();
        let port = udp[0].port;
        let config = Config {
            id: NodeId(id.into()),
            private_key: PrivateKey(zeroize::Zeroizing::new(secret.to_bytes())),
            addresses: vec![[10, 90, 0, id].into()],
            allowed_ips: vec![format!("10.90.0.{id}/32").parse().unwrap()],
            mtu: 1280,
            punch: PunchLimits::default(),
            real_time: 0,
        };
        let (handle, events) = spawn(
            Parts { config, seed: [id; 32], tun: vec![tun], udp, reading: Reading::WithPeers },
            cancel,
            tracker,
        )
        .unwrap();
        let host = tokio::net::UnixDatagram::from_std(host).unwrap();
        Self { id, handle, events, host, public_key, port }
    }

    async fn meet(&self, other: &Self) {
        let id = NodeId(other.id.into());
        let allowed_ips = vec![format!("10.90.0.{}/32", other.id).parse().unwrap()];
        let peer = PeerConfig { id, public_key: other.public_key, allowed_ips };
        self.handle.command(Command::SetPeers(vec![peer])).await.unwrap();
        let address = ([192, 0, 2, 1], other.port).into();
        let candidates = vec![Candidate { address, kind: CandidateKind::Host }];
        let state =
            Command::PeerState { id, online: true, candidates, relays: vec![], home: None, observed: None };
        self.handle.command(state).await.unwrap();
    }

    /// An inner packet to another node: UDP, without a checksum.
    fn packet_to(&self, other: &Self, payload: &[u8]) -> Vec<u8> {
        let len = u16::try_from(28 + payload.len()).unwrap();
        let mut packet =
            vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 90, 0, self.id, 10, 90, 0, other.id];
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        packet.extend([0, 7, 0, 7]);
        packet.extend((len - 20).to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(payload);
        packet
    }

    /// Sends so many packets to another node, which answers when it has them all, in order.
    async fn converse(&self, other: &Self, count: u8) {
        let sent: Vec<_> = (0..count).map(|i| self.packet_to(other, &[i; 100])).collect();
        for packet in &sent {
            self.host.send(packet).await.unwrap();
        }
        for packet in &sent {
            assert_eq!(&other.receive().await, packet);
        }
        other.host.send(&other.packet_to(self, b"answer")).await.unwrap();
        assert_eq!(self.receive().await[28..], *b"answer");
    }

    async fn receive(&self) -> Vec<u8> {
        let mut buffer = vec![0; 2000];
        let len = timeout(DEADLINE, self.host.recv(&mut buffer)).await.expect("in time").unwrap();
        buffer.truncate(len);
        buffer
    }
}

/// Gives the namespace an address that may be a candidate.
fn add_address() {
    for arguments in ["link set lo up", "addr add 192.0.2.1/32 dev lo"] {
        assert!(Program::new("ip").args(arguments.split(' ')).status().unwrap().success());
    }
}

#[test]
fn the_first_packets_arrive_all_and_a_snapshot_tells_of_them() {
    isolated("driver::tests::the_first_packets_arrive_all_and_a_snapshot_tells_of_them", async || {
        add_address();
        let (cancel, tracker) = (CancellationToken::new(), TaskTracker::new());
        let a = Node::start(1, &cancel, &tracker);
        let b = Node::start(2, &cancel, &tracker);
        a.meet(&b).await;
        b.meet(&a).await;
        a.converse(&b, 10).await;
        let (_, snapshot, counters) = a.handle.snapshot().await.unwrap();
        assert_eq!(snapshot.peers.len(), 1);
        assert!(snapshot.peers[0].tx_bytes > 0 && snapshot.peers[0].rx_bytes > 0);
        assert_eq!(counters.iter().count(), 0, "{counters:?}");
        cancel.cancel();
        tracker.close();
        timeout(DEADLINE, tracker.wait()).await.expect("the threads end");
    });
}

#[test]
fn several_engines_behind_one_queue_hand_over_what_is_another_s() {
    isolated("driver::tests::several_engines_behind_one_queue_hand_over_what_is_another_s", async || {
        add_address();
        for steering in [true, false] {
            let (cancel, tracker) = (CancellationToken::new(), TaskTracker::new());
            let several = (NonZeroU32::new(3).unwrap(), Offloads { steering, ..Offloads::ALL });
            // Of three engines, the third has peer 2 and the second has peer 1: the first has none.
            let a = Node::start_with(1, 0, several, &cancel, &tracker);
            let b = Node::start_with(2, 0, several, &cancel, &tracker);
            a.meet(&b).await;
            b.meet(&a).await;
            a.converse(&b, 100).await;
            let (_, snapshot, counters) = a.handle.snapshot().await.unwrap();
            assert_eq!((snapshot.engines, snapshot.peers.len()), (3, 1));
            // The only queue is read by the first engine.
            assert_eq!((counters.arrivals.frames, snapshot.handed_over.frames), (100, 100));
            assert!(counters.arrivals.datagrams > 0);
            assert_eq!(counters.iter().count(), 0, "{counters:?}");
            cancel.cancel();
            tracker.close();
            timeout(DEADLINE, tracker.wait()).await.expect("the threads end");
        }
    });
}

#[test]
fn a_peer_that_is_not_there_costs_counters_and_nothing_else() {
    isolated("driver::tests::a_peer_that_is_not_there_costs_counters_and_nothing_else", async || {
        let (cancel, tracker) = (CancellationToken::new(), TaskTracker::new());
        let mut a = Node::start(1, &cancel, &tracker);
        let b = Node::start(2, &cancel, &tracker);
        // Not even lo is up: every send is refused.
        a.meet(&b).await;
        a.host.send(&a.packet_to(&b, b"lost")).await.unwrap();
        let refused = async {
            loop {
                let (_, _, counters) = a.handle.snapshot().await.unwrap();
                if counters.get(Counter::UdpUnreachable) > 0 {
                    break;
                }
                let _ = timeout(Duration::from_millis(50), a.events.next()).await;
            }
        };
        timeout(DEADLINE, refused).await.expect("counted");
        cancel.cancel();
    });
}

#[test]
fn garbage_is_survived_and_never_answered() {
    isolated("driver::tests::garbage_is_survived_and_never_answered", async || {
        add_address();
        let (cancel, tracker) = (CancellationToken::new(), TaskTracker::new());
        let a = Node::start(1, &cancel, &tracker);
        let b = Node::start(2, &cancel, &tracker);
        let stranger = tokio::net::UdpSocket::bind("192.0.2.1:0").await.unwrap();
        for len in (0..3000).chain([9000, 65_000]) {
            let garbage: Vec<_> = (0..len).map(|i| (i * 31 + len) as u8).collect();
            stranger.send_to(&garbage, ("192.0.2.1", a.port)).await.unwrap();
        }
        a.host.send(&[0xff; 40]).await.unwrap();
        a.host.send(&[]).await.unwrap();
        a.meet(&b).await;
        b.meet(&a).await;
        a.host.send(&a.packet_to(&b, b"still alive")).await.unwrap();
        assert_eq!(b.receive().await[28..], *b"still alive");
        assert!(stranger.try_recv(&mut [0; 2000]).is_err(), "strangers get no answer");
        cancel.cancel();
    });
}

#[test]
fn a_peer_that_is_restarted_under_traffic_is_reached_again_soon() {
    isolated("driver::tests::a_peer_that_is_restarted_under_traffic_is_reached_again_soon", async || {
        add_address();
        let (cancel, tracker) = (CancellationToken::new(), TaskTracker::new());
        let a = Node::start(1, &cancel, &tracker);
        let (killed, its_tasks) = (CancellationToken::new(), TaskTracker::new());
        let b = Node::start(2, &killed, &its_tasks);
        a.meet(&b).await;
        b.meet(&a).await;
        a.host.send(&a.packet_to(&b, b"first")).await.unwrap();
        assert_eq!(b.receive().await[28..], *b"first");
        killed.cancel();
        its_tasks.close();
        its_tasks.wait().await;
        let b = Node::start_at(2, b.port, &cancel, &tracker);
        b.meet(&a).await;
        let again = async {
            loop {
                a.host.send(&a.packet_to(&b, b"again")).await.unwrap();
                if timeout(Duration::from_millis(100), b.receive()).await.is_ok() {
                    break;
                }
            }
        };
        timeout(DEADLINE, again).await.expect("sooner than WireGuard notices by itself (15 s)");
        cancel.cancel();
    });
}
