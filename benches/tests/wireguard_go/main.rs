//! The engine and Debian's wireguard-go exchange traffic both ways, over a rekey from either side.
//!
//! One wireguard-go has two peers, each an engine of its own on the same LAN: `Caller` begins the handshake, `Called`
//! waits for wireguard-go to begin. Both then carry traffic for longer than keys live (REKEY_AFTER_TIME, 120 s), so
//! the one test sees wireguard-go as responder and as initiator of a second handshake, in real time.
#![expect(clippy::unwrap_used, reason = "a test may fail that way")]

mod packet;
mod peer;
mod stock;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use mesh_lab::{Filtering, Lab, Mapping, Nat, Site, Topology};

use self::{peer::Peer, stock::Stock};

const CALLER: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 1);
const STOCK: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 2);
const CALLED: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 3);
const CALLER_V6: &str = "fd5e:ed::1";
const CALLED_V6: &str = "fd5e:ed::3";
/// Initiators renew their keys after this long, when they send (whitepaper, section 6.1).
const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// Beyond that: the handshake itself, and traffic with the new keys.
const TRAFFIC: Duration = Duration::from_secs(130);
/// The fullest packet that fits in wireguard-go's default MTU.
const MTU: u16 = 1420;
/// A payload that makes an echo request as large as [`MTU`].
const FULL: usize = MTU as usize - 28;

#[test]
fn traffic_flows_both_ways_and_keys_are_renewed_by_either_side() {
    let lab = Lab::new("wggo").unwrap();
    let lan = Site::behind("lan", Nat::new(Mapping::Eim, Filtering::Apdf)).host("stock").host("ours");
    let network = lab.build(Topology::new().site(lan)).unwrap();
    let (host, ours) = (network.host("stock").unwrap(), network.host("ours").unwrap());
    let stock = Stock::start(host).unwrap();
    let at_stock = SocketAddr::from((host.address(), stock::PORT));
    let identity = |number, addresses: [&str; 2]| peer::Identity {
        number,
        addresses: addresses.map(|text| text.parse().unwrap()).into(),
    };
    let caller = identity(1, [&CALLER.to_string(), CALLER_V6]);
    let called = identity(3, [&CALLED.to_string(), CALLED_V6]);
    let mut caller = Peer::new(&caller, ours, stock.peer_config(2, STOCK)).unwrap();
    let mut called = Peer::new(&called, ours, stock.peer_config(2, STOCK)).unwrap();
    stock.add_peer(&caller, None).unwrap();
    stock.add_peer(&called, Some(SocketAddr::from((ours.address(), called.port())))).unwrap();
    caller.know(at_stock);

    // The first packets of either side wait for the handshake that they cause.
    caller.echo_all(STOCK, 10, Duration::from_millis(1));
    thread::scope(|scope| {
        let pings = scope.spawn(|| host.ping_many(CALLED, 10).unwrap());
        called.serve_until(|| pings.is_finished());
        assert_eq!(pings.join().unwrap().received(), 10, "wireguard-go begins, and the engine answers");
    });
    let begun = [caller.public_key(), called.public_key()].map(|key| stock.handshake(key).unwrap());

    let until = Instant::now() + TRAFFIC;
    let count = u32::try_from(TRAFFIC.as_millis() / stock::PING_INTERVAL.as_millis()).unwrap();
    let ping = |to: IpAddr, payload| stock.ping(to, count, payload).unwrap();
    thread::scope(|scope| {
        let full = scope.spawn(|| ping(CALLED.into(), FULL));
        let small_v6 = scope.spawn(|| ping(CALLED_V6.parse().unwrap(), 100));
        let talking = scope.spawn(|| caller.talk_until(until, &stock));
        called.serve_until(|| full.is_finished() && small_v6.is_finished());
        talking.join().unwrap();
        for pings in [full.join().unwrap(), small_v6.join().unwrap()] {
            assert_eq!((pings.received, pings.damaged), (count, 0), "echoes to the engine over a rekey");
        }
    });
    for (peer, begun) in [&caller, &called].into_iter().zip(begun) {
        let renewed = stock.handshake(peer.public_key()).unwrap();
        assert!(renewed >= begun + REKEY_AFTER_TIME.as_secs() - 1, "keys of {begun} s, then of {renewed} s");
        assert_eq!(peer.drops(), [], "the engine dropped nothing");
        let age = peer.handshake_age().unwrap();
        assert!(age < TRAFFIC / 2, "the engine has seen that handshake too: {age:?}");
    }

    // Either side moves to another port; the other follows what it hears from there.
    caller.rebind(ours).unwrap();
    caller.echo_all(STOCK, 10, Duration::from_millis(1));
    assert_eq!(stock.endpoint(caller.public_key()).unwrap().port(), caller.port());
    stock.set_port(stock::PORT + 1).unwrap();
    thread::scope(|scope| {
        let pings = scope.spawn(|| stock.ping(CALLER.into(), 5, FULL).unwrap());
        caller.serve_until(|| pings.is_finished());
        assert_eq!(pings.join().unwrap().received, 5);
    });
    assert_eq!(caller.path(), Some(SocketAddr::from((host.address(), stock::PORT + 1))));
    caller.echo_all(STOCK, 10, Duration::from_millis(1));
}
