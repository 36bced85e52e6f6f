//! One value of everything that goes over the wire, as the golden files have it, by file name.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
};

use ipnet::IpNet;
use mesh_proto::{
    candidate::{Candidate, CandidateKind},
    control::{
        ClientMessage, Hello, InstanceId, Knock, Knocking, PeerState, Refusal, RefusalCode, RelayChannel,
        ServerMessage, Welcome,
    },
    disco,
    key::{NodeKey, PublicKey},
    kubernetes::{ApiState, ApiStatus, KubernetesStatus, NetworkPolicies, PodNetworkState},
    lend::{LendMe, Lent},
    netmap::{MapDelta, Mesh, NetworkMap, Node, NodeId, Relay, RelayId, Version},
    netreport::{
        Filtering, Ipv6Report, NatReport, NetReport, ObserverReport, ProxyReport, Reach, RelayReport,
    },
    pass::{PassOn, Passed, Whereabouts},
    punch::{Punch, PunchStage, Sequence},
    relay::{self, ChannelId},
    route::{RouteAnswer, RouteKind, RouteOffer, RouteState},
    status::{
        ConnectionState, ControlTransport, CoordinatorStatus, EnginesStatus, FamilyState, Mapping,
        NatLifetime, NatStatus, PathKind, PathReason, PathStatus, PeerStatus, PortMapping, RelayStatus,
        RelayTransport, SelfStatus, Status,
    },
    stun,
    token::JoinToken,
};

const V4: &str = "203.0.113.1:51820";
const V6: &str = "[2001:db8::7]:443";

/// A disco header, and bytes that stand for the sealed body of a Ping.
pub(crate) fn disco_header() -> (disco::Header, Vec<u8>) {
    let header = disco::Header { sender: PublicKey([0x11; 32]), nonce: [0x22; disco::NONCE_LEN] };
    (header, vec![0x33; 14 + disco::TAG_LEN])
}

/// Why peers are on their paths: all that there is.
pub(crate) fn path_reasons() -> Vec<PathReason> {
    vec![
        PathReason::AnsweredOnLan,
        PathReason::Answered,
        PathReason::AnsweredPunched,
        PathReason::Doubted,
        PathReason::Heard,
        PathReason::NothingKnown,
        PathReason::NoCandidates,
        PathReason::NotProbed,
        PathReason::NoAnswer,
        PathReason::StoppedAnswering,
        PathReason::Punching,
        PathReason::PunchFailed,
        PathReason::NatsVary,
        PathReason::UdpBlocked,
        PathReason::Unknown,
    ]
}

/// The bodies of disco messages.
pub(crate) fn disco_messages() -> Vec<(&'static str, disco::Message)> {
    use disco::Message::{self, CallMeMaybe, Ping, Pong, Punch};
    let txid = *b"transaction!";
    vec![
        ("ping", Ping { txid, padding: 0 }),
        ("ping_padded", Ping { txid, padding: 21 }),
        ("pong_v4", Pong { txid, observed: Some(socket(V4)) }),
        ("pong_v6", Pong { txid, observed: Some(socket(V6)) }),
        ("pong_relayed", Pong { txid, observed: None }),
        ("call_me_maybe", CallMeMaybe { candidates: candidates() }),
        ("call_me_maybe_empty", CallMeMaybe { candidates: vec![] }),
        ("punch_offer", Punch(punch(PunchStage::Offer, None))),
        ("punch_answer", Punch(punch(PunchStage::Answer, Some(Sequence { next: 40_000, step: -256 })))),
        ("punch_refused", Punch(punch(PunchStage::Refused, None))),
        ("lend_me", Message::LendMe(LendMe { id: txid })),
        (
            "lent",
            Message::Lent(Lent { id: txid, channel: ChannelId(0xc0c1_c2c3_c4c5_c6c7), key: [0x44; 32] }),
        ),
        ("pass_on", Message::PassOn(PassOn { to: NodeId(0x0102_0304), sealed: b"sealed".to_vec() })),
        ("passed", Message::Passed(Passed { observed: Some(socket(V4)), sealed: b"sealed".to_vec() })),
        ("passed_relayed", Message::Passed(Passed { observed: None, sealed: b"sealed".to_vec() })),
        ("whereabouts", Message::Whereabouts(whereabouts())),
        ("whereabouts_empty", Message::Whereabouts(empty_whereabouts())),
        ("pause", Message::Pause { session: *b"initiate", stays: 50 }),
    ]
}

fn whereabouts() -> Whereabouts {
    let relays = vec![RelayId(7), RelayId(0)];
    Whereabouts {
        number: 1_790_000_000_123,
        seen: 1_780_000_000_456,
        relays,
        has_home: true,
        candidates: candidates(),
    }
}

fn empty_whereabouts() -> Whereabouts {
    Whereabouts { number: 1, seen: 0, relays: vec![], has_home: false, candidates: vec![] }
}

fn punch(stage: PunchStage, sequence: Option<Sequence>) -> Punch {
    let (id, mapped) = (*b"transaction!", socket(V4));
    Punch { stage, id, mapping: Mapping::Apdm, mapped, sequence, rate: 500, budget: 4096 }
}

/// Relay frames.
pub(crate) fn relay_frames() -> Vec<(&'static str, relay::Frame<'static>)> {
    use relay::Frame::{Bind, Bound, Data, UnknownChannel};
    let channel = ChannelId(0xc0c1_c2c3_c4c5_c6c7);
    let counter = 0x0102_0304_0506_0708;
    let mac = relay::bind_mac(&[0x44; relay::CHANNEL_KEY_LEN], channel, counter);
    vec![
        ("bind", Bind { channel, counter, mac }),
        ("bound_v4", Bound { channel, counter, observed: socket(V4) }),
        ("bound_v6", Bound { channel, counter, observed: socket(V6) }),
        ("data", Data { peer: NodeId(0xa0a1_a2a3), channel, payload: b"\x04\0\0\0ciphertext" }),
        ("data_empty", Data { peer: NodeId(1), channel, payload: b"" }),
        ("unknown_channel", UnknownChannel { channel }),
    ]
}

/// STUN messages.
pub(crate) fn stun_messages() -> Vec<(&'static str, stun::Message)> {
    use stun::Message::{BindingRequest, BindingRequestFor, BindingSuccess};
    let transaction = *b"transaction!";
    vec![
        ("binding_request", BindingRequest { transaction }),
        ("binding_request_for", BindingRequestFor { transaction, port: NonZeroU16::new(0x1234).unwrap() }),
        ("binding_success_v4", BindingSuccess { transaction, mapped: socket(V4) }),
        ("binding_success_v6", BindingSuccess { transaction, mapped: socket(V6) }),
    ]
}

/// What an agent says.
pub(crate) fn client_messages() -> Vec<(&'static str, ClientMessage)> {
    let public_key = PublicKey([2; 32]);
    let map = Some(Version { epoch: 1, serial: 41 });
    let token = JoinToken::from_random([0x0a; 5], [0x0b; 16]);
    vec![
        ("hello", ClientMessage::Hello(Hello { version: "0.1.0".into(), features: vec!["pq".into()] })),
        ("join", ClientMessage::Join { token, name: "pi".parse().unwrap(), public_key }),
        (
            "join_service_account",
            ClientMessage::JoinServiceAccount {
                token: "eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOlsibWVzaC1jb29yZGluYXRvciJdfQ.c2lnbmF0dXJl"
                    .parse()
                    .unwrap(),
                name: "pi".parse().unwrap(),
                public_key,
            },
        ),
        ("connect", ClientMessage::Connect { public_key, map, instance: None }),
        ("connect_first", ClientMessage::Connect { public_key, map: None, instance: None }),
        (
            "connect_instance",
            ClientMessage::Connect { public_key, map: None, instance: Some(InstanceId([0x0c; 16])) },
        ),
        ("still_here", ClientMessage::StillHere { id: 7 }),
        ("resync", ClientMessage::Resync),
        (
            "candidates",
            ClientMessage::Candidates {
                candidates: candidates(),
                relays: vec![RelayId(0), RelayId(3)],
                home: Some(RelayId(3)),
            },
        ),
        ("call_me_maybe", ClientMessage::CallMeMaybe { to: NodeId(2), candidates: candidates() }),
        ("relay_open", ClientMessage::RelayOpen),
        ("serve_relay", ClientMessage::ServeRelay { addresses: vec!["relay.example:7443".into()] }),
        ("ping", ClientMessage::Ping { id: u64::MAX }),
        ("knock", ClientMessage::Knock(knock())),
        ("advertise", ClientMessage::Advertise { routes: route_offers() }),
        ("unknown", ClientMessage::Unknown),
    ]
}

/// What a coordinator or relay says.
pub(crate) fn server_messages() -> Vec<(&'static str, ServerMessage)> {
    let observed = socket(V4);
    let states = vec![
        PeerState {
            id: NodeId(2),
            online: true,
            candidates: candidates(),
            relays: vec![RelayId(0)],
            home: Some(RelayId(0)),
            observed: Some(socket(V4).ip()),
        },
        PeerState {
            id: NodeId(3),
            online: false,
            candidates: vec![],
            relays: vec![],
            home: None,
            observed: None,
        },
    ];
    let channel = RelayChannel {
        relay: RelayId(0),
        channel: ChannelId(0xc0c1_c2c3_c4c5_c6c7),
        key: [0x44; relay::CHANNEL_KEY_LEN],
        bind_lifetime_s: None,
    };
    vec![
        (
            "welcome",
            ServerMessage::Welcome(Welcome {
                version: "0.1.0".into(),
                features: vec!["pq".into()],
                observed,
                observer_ports: vec![],
            }),
        ),
        (
            "welcome_observer",
            ServerMessage::Welcome(Welcome {
                version: "0.1.0".into(),
                features: vec![],
                observed,
                observer_ports: vec![7444],
            }),
        ),
        ("joined", ServerMessage::Joined { node: pi() }),
        ("map", ServerMessage::Map { map: Box::new(network_map()) }),
        ("delta", ServerMessage::Delta { delta: map_delta() }),
        ("delta_empty", ServerMessage::Delta { delta: empty_delta() }),
        ("peer_states", ServerMessage::PeerStates { peers: states }),
        ("call_me_maybe", ServerMessage::CallMeMaybe { from: NodeId(2), candidates: candidates() }),
        ("relay_opened", ServerMessage::RelayOpened(channel)),
        ("pong", ServerMessage::Pong { id: u64::MAX, time_ms: None }),
        ("pong_time", ServerMessage::Pong { id: 7, time_ms: Some(1_767_225_600_123) }),
        ("knock", ServerMessage::Knock(knock())),
        ("knocking", ServerMessage::Knocking(knocking())),
        ("are_you_there", ServerMessage::AreYouThere { id: 7 }),
        ("copied", ServerMessage::Copied),
        ("routes", ServerMessage::Routes { routes: route_answers() }),
        ("refused", ServerMessage::Refused(refusal(RefusalCode::Token, None))),
        ("refused_busy", ServerMessage::Refused(refusal(RefusalCode::Busy, Some(1500)))),
        ("unknown", ServerMessage::Unknown),
    ]
}

fn knock() -> Knock {
    Knock { to: socket(V4), transaction: *b"transaction!" }
}

fn route_offers() -> Vec<RouteOffer> {
    [("10.244.1.0/24", RouteKind::Pods), ("fd42::/64", RouteKind::Subnet)]
        .map(|(prefix, kind)| RouteOffer { prefix: prefix.parse().unwrap(), kind })
        .to_vec()
}

fn route_answers() -> Vec<RouteAnswer> {
    let answer = |prefix: &str, state, reason: Option<&str>| RouteAnswer {
        prefix: prefix.parse().unwrap(),
        state,
        reason: reason.map(str::to_owned),
    };
    vec![
        answer("10.244.1.0/24", RouteState::Approved, None),
        answer("fd42::/64", RouteState::Refused, Some("it overlaps fd42::/48 of pi")),
    ]
}

fn knocking() -> Knocking {
    let others = vec![socket(V6).ip()];
    Knocking { transaction: *b"transaction!", port: 7444, others }
}

/// Every kind of candidate.
pub(crate) fn candidate_kinds() -> Vec<CandidateKind> {
    use CandidateKind::{Guess, Host, PortMapped, Reflexive, Unknown};
    vec![Host, PortMapped, Reflexive, Guess, Unknown]
}

/// Every code of a refusal.
pub(crate) fn refusal_codes() -> Vec<RefusalCode> {
    use RefusalCode::{
        Busy, Duplicate, NameTaken, NotRegistered, Protocol, Replaced, ServiceAccount, ShuttingDown, Token,
        Unknown,
    };
    vec![
        Token,
        NameTaken,
        NotRegistered,
        Busy,
        Replaced,
        ShuttingDown,
        Protocol,
        Duplicate,
        Unknown,
        ServiceAccount,
    ]
}

/// A document of `meshctl netcheck --json`.
pub(crate) fn net_report() -> NetReport {
    let (_, status) = statuses().swap_remove(0);
    let this = status.this;
    let reach = Reach { reachable: Some(true), address: Some(socket(V4)), rtt_ms: Some(1.5) };
    NetReport {
        nat: NatReport { status: this.nat, filtering: Filtering::AdfOrApdf, hairpin: Some(false) },
        candidates: this.candidates,
        coordinator: this.coordinator,
        relay: this.relay,
        relays: vec![RelayReport { name: "pi".into(), udp: reach, tcp: Reach::default() }],
        observers: vec![ObserverReport { address: socket(V4), mapped: socket(V4), rtt_ms: 1.5 }],
        ipv6: Ipv6Report { address: Some(socket(V6).ip()), reachable: Some(true) },
        captive_portal: Some(false),
        proxy: Some(ProxyReport { url: "http://proxy.example:3128".into(), in_use: true }),
        clock_offset_ms: Some(-3.5),
        uplink_mtu: Some(1492),
    }
}

/// Every filtering behaviour.
pub(crate) fn filterings() -> Vec<Filtering> {
    use Filtering::{Adf, AdfOrApdf, Apdf, Eif, EifOrAdf, None, Unknown};
    vec![Eif, Adf, Apdf, EifOrAdf, AdfOrApdf, None, Unknown]
}

/// Documents of `meshctl status --json`: the reference one first, then one of which nothing is known.
pub(crate) fn statuses() -> Vec<(&'static str, Status)> {
    let since = || Some("2026-01-02T03:04:05Z".to_owned());
    let this = SelfStatus {
        name: "pi".into(),
        node_key: NodeKey([1; 32]),
        public_key: PublicKey([2; 32]),
        addresses: vec![ip("10.90.0.1"), ip("fd5d:1:2::1")],
        interface: "mesh0".into(),
        mtu: 1420,
        candidates: vec![Candidate { address: socket(V4), kind: CandidateKind::Reflexive }],
        nat: NatStatus {
            mapping: Mapping::Eim,
            port_mapping: PortMapping::NatPmp,
            udp_blocked: false,
            mapped_address: Some("203.0.113.1:51820".parse().unwrap()),
            ipv4: FamilyState::Works,
            ipv6: FamilyState::Silent,
            nat64: vec!["64:ff9b::/96".parse().unwrap()],
            lifetime: NatLifetime { outlived_s: Some(100), exceeded_s: Some(160), keepalive_s: Some(80) },
        },
        coordinator: CoordinatorStatus {
            state: ConnectionState::Connected,
            address: Some("203.0.113.1:7443".into()),
            transport: Some(ControlTransport::Quic),
            rtt_ms: Some(1.2),
            error: None,
            outer_certificate: None,
        },
        relay: Some(RelayStatus { name: "pi".into(), transport: RelayTransport::Udp, rtt_ms: Some(1.2) }),
        routes: vec![net("10.244.1.0/24")],
        advertised: route_answers(),
        ready: true,
        warnings: vec![],
        drops: [].into(),
        engines: None,
        ranges: vec![],
        kubernetes: None,
    };
    let direct = PeerStatus {
        name: "country".into(),
        node_key: NodeKey([3; 32]),
        public_key: PublicKey([4; 32]),
        addresses: vec![ip("10.90.0.2")],
        allowed_ips: vec![net("10.90.0.2/32"), net("10.244.2.0/24")],
        online: true,
        path: PathStatus {
            kind: PathKind::Direct,
            address: Some(socket("198.51.100.7:51820")),
            relay: None,
            rtt_ms: Some(18.2),
            mtu: Some(1420),
            since: since(),
            code: PathReason::AnsweredPunched,
            reason: "direct path answered first".into(),
        },
        last_handshake: since(),
        tx_bytes: 0,
        rx_bytes: 0,
        loss: 0.0,
        loss_measured: true,
        drops: [].into(),
    };
    let relayed = PeerStatus {
        name: "office".into(),
        path: PathStatus {
            kind: PathKind::Relay,
            address: None,
            relay: Some("pi".into()),
            rtt_ms: None,
            mtu: None,
            since: since(),
            code: PathReason::NatsVary,
            reason: "no direct path answers".into(),
        },
        tx_bytes: u64::MAX,
        rx_bytes: 1,
        loss: 0.25,
        loss_measured: true,
        drops: [("no_session".to_owned(), 3), ("source_not_allowed".to_owned(), 1)].into(),
        ..direct.clone()
    };
    let unreached = PeerStatus {
        name: "macbook".into(),
        online: false,
        path: PathStatus {
            kind: PathKind::None,
            address: None,
            relay: None,
            rtt_ms: None,
            mtu: None,
            since: None,
            code: PathReason::NothingKnown,
            reason: "never seen".into(),
        },
        last_handshake: None,
        ..direct.clone()
    };
    let lonely = SelfStatus {
        candidates: vec![],
        nat: NatStatus {
            mapping: Mapping::Unknown,
            port_mapping: PortMapping::None,
            udp_blocked: true,
            mapped_address: None,
            ipv4: FamilyState::None,
            ipv6: FamilyState::Unknown,
            nat64: vec![],
            lifetime: NatLifetime::default(),
        },
        coordinator: CoordinatorStatus {
            state: ConnectionState::Offline,
            address: None,
            transport: None,
            rtt_ms: None,
            error: Some("connection refused".into()),
            outer_certificate: Some("06".repeat(32)),
        },
        relay: None,
        routes: vec![],
        advertised: vec![],
        ready: false,
        warnings: vec!["udp is blocked".into()],
        drops: [("malformed-datagram".to_owned(), 7)].into(),
        engines: Some(EnginesStatus {
            count: 2,
            tun_reads: 100,
            tun_reads_handed_over: 3,
            datagrams: 4000,
            datagrams_handed_over: 5,
        }),
        ranges: vec![net("10.90.0.0/16"), net("fd5d:1:2::/48")],
        kubernetes: Some(KubernetesStatus {
            node: "pi".into(),
            state: PodNetworkState::NotReady,
            pod_ranges: vec![net("10.244.0.0/24")],
            api: ApiStatus {
                state: ApiState::Silent,
                address: Some("10.90.0.1:6443".into()),
                error: Some("connection refused".into()),
                last_answer: since(),
            },
            from_cache: true,
            network_policies: NetworkPolicies::NotEnforced,
            problems: vec!["the mesh is not ready".into()],
        }),
        ..this.clone()
    };
    vec![
        ("reference", Status { this, peers: vec![direct] }),
        ("nothing_known", Status { this: lonely, peers: vec![unreached, relayed] }),
    ]
}

fn candidates() -> Vec<Candidate> {
    let addresses = ["192.168.1.20:51820", "203.0.113.1:4500", V4, V6, "198.51.100.9:9"];
    let pairs = addresses.into_iter().zip(candidate_kinds());
    pairs.map(|(address, kind)| Candidate { address: socket(address), kind }).collect()
}

fn refusal(code: RefusalCode, retry_after_ms: Option<u64>) -> Refusal {
    Refusal { code, message: "said to people".into(), retry_after_ms }
}

fn pi() -> Node {
    Node {
        id: NodeId(1),
        name: "pi".parse().unwrap(),
        node_key: NodeKey([1; 32]),
        public_key: PublicKey([2; 32]),
        addresses: vec![ip("10.90.0.1"), ip("fd5d:1:2::1")],
        allowed_ips: vec![net("10.90.0.1/32"), net("fd5d:1:2::1/128"), net("10.244.1.0/24")],
        tags: vec!["server".into()],
    }
}

fn country() -> Node {
    Node {
        id: NodeId(2),
        name: "country".parse().unwrap(),
        node_key: NodeKey([3; 32]),
        public_key: PublicKey([4; 32]),
        addresses: vec![ip("10.90.0.2"), ip("fd5d:1:2::2")],
        allowed_ips: vec![net("10.90.0.2/32"), net("fd5d:1:2::2/128")],
        tags: vec![],
    }
}

fn relays() -> Vec<Relay> {
    let relay = |id, name: &str, key, address: &str| Relay {
        id: RelayId(id),
        name: name.into(),
        key,
        addresses: vec![address.into()],
    };
    vec![
        relay(0, "pi", None, "pi.example.net:7443"),
        relay(3, "far", Some(NodeKey([5; 32])), "203.0.113.3:7443"),
    ]
}

fn network_map() -> NetworkMap {
    NetworkMap {
        version: Version { epoch: 1, serial: 41 },
        mesh: Mesh {
            ipv4: "10.90.0.0/16".parse().unwrap(),
            ipv6: "fd5d:1:2::/48".parse().unwrap(),
            coordinators: vec!["pi.example.net:7443".into(), "203.0.113.1:7443".into()],
        },
        this: pi(),
        peers: vec![country()],
        relays: relays(),
    }
}

fn empty_delta() -> MapDelta {
    MapDelta {
        from: Version { epoch: 1, serial: 41 },
        to: Version { epoch: 1, serial: 42 },
        this: None,
        changed: vec![],
        removed: vec![],
        relays: None,
    }
}

fn map_delta() -> MapDelta {
    MapDelta {
        this: Some(pi()),
        changed: vec![country()],
        removed: vec![NodeId(3)],
        relays: Some(relays()),
        ..empty_delta()
    }
}

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}
