//! Tables of what is routed and what is not.

use ipnet::IpNet;
use mesh_proto::{
    key::{NodeKey, PublicKey},
    netmap::{NetworkMap, Node, NodeId},
    route::Unroutable,
};

use super::{Desired, LocalNetworks, PeerFault, PlanOptions, Refusal, Warning, plan};
use crate::netmap::fixtures::{map, node};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn nets<'a>(texts: impl IntoIterator<Item = &'a str>) -> Vec<IpNet> {
    texts.into_iter().map(net).collect()
}

fn local(connected: &[&str]) -> LocalNetworks {
    LocalNetworks { connected: nets(connected.iter().copied()) }
}

/// Node `id` with prefixes beside its address.
fn with_routes(id: u8, routes: &[&str]) -> Node {
    let mut peer = node(id);
    peer.allowed_ips.extend(nets(routes.iter().copied()));
    peer
}

fn map_of(peers: impl Into<Vec<Node>>) -> NetworkMap {
    NetworkMap { peers: peers.into(), ..map(1, []) }
}

fn plan_of(peers: impl Into<Vec<Node>>, connected: &[&str]) -> Desired {
    plan(&map_of(peers), &local(connected), &PlanOptions::default())
}

fn routes(desired: &Desired) -> Vec<String> {
    desired.routes.iter().map(IpNet::to_string).collect()
}

fn allowed(desired: &Desired, id: u32) -> Vec<String> {
    let peer = desired.peers.iter().find(|peer| peer.id == NodeId(id)).unwrap();
    peer.allowed_ips.iter().map(IpNet::to_string).collect()
}

fn refused(peer: u8, prefix: &str, reason: Refusal) -> Warning {
    Warning::Refused { peer: Some(node(peer).name), prefix: net(prefix), reason }
}

#[test]
fn a_plain_mesh_has_two_routes_whatever_its_size() {
    let mut this = node(1);
    this.addresses.push("fd12:3456:789a::1".parse().unwrap());
    let desired = plan(
        &NetworkMap { this, ..map(1, 2..=200) },
        &local(&["192.168.1.0/24", "fe80::/64"]),
        &PlanOptions::default(),
    );
    assert_eq!(desired.addresses, nets(["10.90.0.1/32", "fd12:3456:789a::1/128"]));
    assert_eq!(routes(&desired), ["10.90.0.0/16", "fd12:3456:789a::/48"]);
    assert_eq!(desired.peers.len(), 199);
    assert_eq!(allowed(&desired, 7), ["10.90.0.7/32"]);
    assert_eq!(desired.warnings, []);
}

#[test]
fn a_peers_network_gets_a_route_of_its_own() {
    let desired = plan_of([with_routes(2, &["10.244.2.0/24", "fd77::/64"]), node(3)], &["10.244.1.0/24"]);
    assert_eq!(routes(&desired), ["10.90.0.0/16", "10.244.2.0/24", "fd12:3456:789a::/48", "fd77::/64"]);
    assert_eq!(allowed(&desired, 2), ["10.90.0.2/32", "10.244.2.0/24", "fd77::/64"]);
    assert_eq!(desired.warnings, []);
}

#[test]
fn what_must_never_be_routed_is_refused_for_sending_and_receiving() {
    for (prefix, reason) in [
        ("0.0.0.0/0", Refusal::Unroutable(Unroutable::TooWide)),
        ("::/0", Refusal::Unroutable(Unroutable::TooWide)),
        ("128.0.0.0/1", Refusal::Unroutable(Unroutable::TooWide)),
        ("2000::/3", Refusal::Unroutable(Unroutable::TooWide)),
        ("127.0.0.0/8", Refusal::Unroutable(Unroutable::Special)),
        ("169.254.169.254/32", Refusal::Unroutable(Unroutable::Special)),
        ("224.0.0.0/8", Refusal::Unroutable(Unroutable::Special)),
        ("255.255.255.255/32", Refusal::Unroutable(Unroutable::Special)),
        ("::1/128", Refusal::Unroutable(Unroutable::Special)),
        ("fe80::/64", Refusal::Unroutable(Unroutable::Special)),
        ("ff02::/16", Refusal::Unroutable(Unroutable::Special)),
        // Somebody else's mesh address, or many of them.
        ("10.90.0.3/32", Refusal::MeshRange),
        ("10.90.0.0/24", Refusal::MeshRange),
        ("10.90.0.0/16", Refusal::MeshRange),
        ("10.0.0.0/8", Refusal::MeshRange),
        ("10.90.0.1/32", Refusal::MeshRange),
        ("fd12:3456:789a:1::/64", Refusal::MeshRange),
        // This host's own networks.
        ("192.168.1.0/24", Refusal::Local(net("192.168.1.0/24"))),
        ("192.168.1.7/32", Refusal::Local(net("192.168.1.0/24"))),
    ] {
        let desired = plan_of([with_routes(2, &[prefix])], &["192.168.1.0/24"]);
        assert_eq!(desired.warnings, [refused(2, prefix, reason)], "{prefix}");
        assert_eq!(allowed(&desired, 2), ["10.90.0.2/32"], "{prefix}");
        assert_eq!(routes(&desired), ["10.90.0.0/16", "fd12:3456:789a::/48"], "{prefix}");
    }
}

#[test]
fn a_network_around_a_local_one_is_routed_and_reported() {
    let desired = plan_of([with_routes(2, &["192.168.0.0/16"])], &["192.168.1.0/24"]);
    assert_eq!(allowed(&desired, 2), ["10.90.0.2/32", "192.168.0.0/16"]);
    let shadowed = Warning::Shadowed {
        peer: Some(node(2).name),
        prefix: net("192.168.0.0/16"),
        local: net("192.168.1.0/24"),
    };
    assert_eq!(desired.warnings, [shadowed]);
}

#[test]
fn a_lan_that_is_the_mesh_range_wins_and_is_reported_once() {
    for lan in ["10.0.0.0/8", "10.90.0.0/16"] {
        let desired = plan_of([node(2), node(3)], &[lan]);
        assert_eq!(routes(&desired), ["fd12:3456:789a::/48"], "{lan}");
        assert!(allowed(&desired, 2).is_empty(), "{lan}");
        let range =
            Warning::Refused { peer: None, prefix: net("10.90.0.0/16"), reason: Refusal::Local(net(lan)) };
        assert_eq!(desired.warnings, [range], "{lan}");
    }
}

#[test]
fn a_lan_inside_the_mesh_range_keeps_its_addresses() {
    let desired = plan_of([node(2), node(200)], &["10.90.0.128/25"]);
    assert_eq!(routes(&desired), ["10.90.0.0/16", "fd12:3456:789a::/48"]);
    assert_eq!(allowed(&desired, 2), ["10.90.0.2/32"]);
    assert!(allowed(&desired, 200).is_empty());
    let lan = net("10.90.0.128/25");
    assert_eq!(
        desired.warnings,
        [
            Warning::Shadowed { peer: None, prefix: net("10.90.0.0/16"), local: lan },
            refused(200, "10.90.0.200/32", Refusal::Local(lan)),
        ]
    );
}

#[test]
fn among_peers_the_lowest_id_has_a_disputed_prefix() {
    let taken = |prefix: &str| Refusal::Taken { owner: node(2).name, prefix: net(prefix) };
    for (theirs, reason) in [
        ("10.244.2.0/24", taken("10.244.2.0/24")),
        ("10.244.2.128/25", taken("10.244.2.0/24")),
        ("10.244.0.0/16", taken("10.244.2.0/24")),
    ] {
        // In whichever order they come.
        let peers = [with_routes(3, &[theirs]), with_routes(2, &["10.244.2.0/24"])];
        let desired = plan_of(peers, &[]);
        assert_eq!(desired.warnings, [refused(3, theirs, reason)]);
        assert_eq!(allowed(&desired, 3), ["10.90.0.3/32"]);
        assert_eq!(allowed(&desired, 2), ["10.90.0.2/32", "10.244.2.0/24"]);
    }
    let nested = plan_of([with_routes(2, &["10.244.0.0/16", "10.244.2.0/24", "10.244.2.0/24"])], &[]);
    assert_eq!(nested.warnings, [], "of one peer they are no dispute");
    assert_eq!(allowed(&nested, 2), ["10.90.0.2/32", "10.244.0.0/16", "10.244.2.0/24"]);
}

#[test]
fn what_this_node_announces_is_not_routed_away() {
    let mut this = node(1);
    this.allowed_ips.push(net("10.244.1.0/24"));
    let map = NetworkMap { this, ..map_of([with_routes(2, &["10.244.0.0/16"])]) };
    let desired = plan(&map, &local(&[]), &PlanOptions::default());
    assert_eq!(desired.warnings, [refused(2, "10.244.0.0/16", Refusal::Own(net("10.244.1.0/24")))]);
}

#[test]
fn the_way_to_the_coordinator_never_leads_through_the_mesh() {
    let options = PlanOptions { underlay: ["203.0.113.1".parse().unwrap()].into() };
    let desired =
        plan(&map_of([with_routes(2, &["203.0.113.0/24", "198.51.100.0/24"])]), &local(&[]), &options);
    let address = "203.0.113.1".parse().unwrap();
    assert_eq!(desired.warnings, [refused(2, "203.0.113.0/24", Refusal::Underlay(address))]);
    assert_eq!(allowed(&desired, 2), ["10.90.0.2/32", "198.51.100.0/24"]);
}

#[test]
fn two_peers_never_have_one_address() {
    let twin = Node { addresses: node(2).addresses, allowed_ips: node(2).allowed_ips, ..node(3) };
    let thief = Node { addresses: node(1).addresses, allowed_ips: node(1).allowed_ips, ..node(4) };
    let desired = plan_of([twin, thief, node(2)], &[]);
    assert_eq!(allowed(&desired, 2), ["10.90.0.2/32"]);
    assert!(allowed(&desired, 3).is_empty() && allowed(&desired, 4).is_empty());
    let owner = Refusal::Taken { owner: node(2).name, prefix: net("10.90.0.2/32") };
    assert_eq!(
        desired.warnings,
        [refused(3, "10.90.0.2/32", owner), refused(4, "10.90.0.1/32", Refusal::Own(net("10.90.0.1/32"))),]
    );
}

#[test]
fn copies_of_nodes_are_left_out() {
    let left_out = |id, reason| Warning::PeerLeftOut { peer: node(id).name, reason };
    for (copy, reason) in [
        (Node { public_key: PublicKey([1; 32]), ..node(9) }, PeerFault::IsThisNode),
        (Node { node_key: NodeKey([1; 32]), ..node(9) }, PeerFault::IsThisNode),
        (Node { id: NodeId(1), ..node(9) }, PeerFault::IsThisNode),
        (Node { public_key: PublicKey([2; 32]), ..node(9) }, PeerFault::Duplicate(node(2).name)),
        (Node { node_key: NodeKey([2; 32]), ..node(9) }, PeerFault::Duplicate(node(2).name)),
        (Node { id: NodeId(2), ..node(9) }, PeerFault::Duplicate(node(2).name)),
    ] {
        let desired = plan_of([node(2), copy, node(3)], &[]);
        let ids: Vec<_> = desired.peers.iter().map(|peer| peer.id.0).collect();
        assert_eq!(ids, [2, 3]);
        assert_eq!(desired.warnings, [left_out(9, reason)]);
    }
}

#[test]
fn prefixes_with_host_bits_are_taken_as_what_they_mean() {
    let desired = plan_of([with_routes(2, &["10.244.2.7/24"])], &[]);
    assert_eq!(allowed(&desired, 2), ["10.90.0.2/32", "10.244.2.0/24"]);
}

#[test]
fn every_warning_reads_as_a_sentence() {
    let desired = plan_of(
        [with_routes(2, &["0.0.0.0/0", "10.244.0.0/16"]), with_routes(3, &["10.244.1.0/24"]), node(1)],
        &["10.90.3.0/24"],
    );
    let text: Vec<_> = desired.warnings.iter().map(Warning::to_string).collect();
    assert_eq!(
        text,
        [
            "a part of 10.90.0.0/16 of the mesh is not reached: this host stands in 10.90.3.0/24",
            "n1 is left out: it has this node's id or key",
            "0.0.0.0/0 of n2 is not routed: it is a default route, or nearly one",
            "10.244.1.0/24 of n3 is not routed: n2 has 10.244.0.0/16",
        ]
    );
}
