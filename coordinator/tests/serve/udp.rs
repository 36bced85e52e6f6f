//! The UDP port through real sockets: the relay, STUN, and whatever else may arrive.

use std::{io::IoSliceMut, net::SocketAddr, num::NonZeroU16, time::Duration};

use mesh_coordinator::front::{FrontSocket, Source};
use mesh_proto::{
    control::{ClientMessage, Knock, Knocking, ServerMessage},
    relay::{Frame, bind_mac},
    stun,
};

use super::rig::{Agent, Client, Rig, bind, read, udp, within};

#[tokio::test]
async fn stun_says_where_a_request_came_from() {
    let rig = Rig::start().await;
    let socket = udp().await;
    let transaction = [3; 12];
    let request = stun::Message::BindingRequest { transaction }.encode();
    socket.send_to(&request, rig.address()).await.unwrap();
    let expected = stun::Message::BindingSuccess { transaction, mapped: socket.local_addr().unwrap() };
    assert_eq!(stun::Message::decode(&read(&socket).await), Ok(expected));
    rig.server.stop().await;
}

#[tokio::test]
async fn stun_answers_at_another_port_if_that_is_asked_for() {
    let rig = Rig::start().await;
    let (asking, silent) = (udp().await, udp().await);
    let transaction = [4; 12];
    let port = NonZeroU16::new(silent.local_addr().unwrap().port()).unwrap();
    let request = stun::Message::BindingRequestFor { transaction, port }.encode();
    asking.send_to(&request, rig.address()).await.unwrap();
    let expected = stun::Message::BindingSuccess { transaction, mapped: asking.local_addr().unwrap() };
    assert_eq!(stun::Message::decode(&read(&silent).await), Ok(expected));
    rig.server.stop().await;
}

#[tokio::test]
async fn stun_is_no_amplifier() {
    let rig = Rig::start().await;
    let socket = udp().await;
    let request = stun::Message::BindingRequest { transaction: [3; 12] }.encode();
    for _ in 0..1000 {
        socket.send_to(&request, rig.address()).await.unwrap();
    }
    let mut answers = 0;
    let mut buffer = [0; 1500];
    while tokio::time::timeout(Duration::from_millis(300), socket.recv(&mut buffer)).await.is_ok() {
        answers += 1;
    }
    assert!((100..200).contains(&answers), "{answers} answers to 1000 requests");
    rig.server.stop().await;
}

#[tokio::test]
async fn the_relay_carries_data_between_two_nodes() {
    let rig = Rig::start().await;
    let (first, second) = (Agent::new("home-a"), Agent::new("home-b"));
    let (first_id, second_id) = (rig.join(&first).await.id, rig.join(&second).await.id);
    let (mut one, _) = rig.connect(&first).await;
    let (mut two, _) = rig.connect(&second).await;
    let (one_channel, two_channel) = (one.open_channel().await, two.open_channel().await);
    let (one_socket, two_socket) = (udp().await, udp().await);
    bind(&one_socket, rig.address(), &one_channel, 1).await;
    bind(&two_socket, rig.address(), &two_channel, 1).await;

    for (number, len) in [(0_u8, 0), (1, 1), (2, 1400)] {
        let payload = vec![number; len];
        let frame = Frame::Data { peer: second_id, channel: one_channel.channel, payload: &payload };
        one_socket.send_to(&frame.encode(), rig.address()).await.unwrap();
        let expected = Frame::Data { peer: first_id, channel: two_channel.channel, payload: &payload };
        assert_eq!(Frame::decode(&read(&two_socket).await).unwrap(), expected);
    }

    // Somebody else who knows channel and peers, and a replayed Bind.
    let thief = udp().await;
    let stolen = Frame::Data { peer: second_id, channel: one_channel.channel, payload: b"forged" };
    thief.send_to(&stolen.encode(), rig.address()).await.unwrap();
    let mac = bind_mac(&one_channel.key, one_channel.channel, 1);
    let replayed = Frame::Bind { channel: one_channel.channel, counter: 1, mac };
    thief.send_to(&replayed.encode(), rig.address()).await.unwrap();
    thief.send_to(&stolen.encode(), rig.address()).await.unwrap();
    let honest = Frame::Data { peer: second_id, channel: one_channel.channel, payload: b"honest" };
    one_socket.send_to(&honest.encode(), rig.address()).await.unwrap();
    let expected = Frame::Data { peer: first_id, channel: two_channel.channel, payload: b"honest" };
    assert_eq!(Frame::decode(&read(&two_socket).await).unwrap(), expected, "and nothing forged before it");
    rig.server.stop().await;
}

#[tokio::test]
async fn a_train_goes_through_the_relay_as_a_train() {
    const FRAMES: usize = 20;
    let rig = Rig::start().await;
    let (first, second) = (Agent::new("home-a"), Agent::new("home-b"));
    let (first_id, second_id) = (rig.join(&first).await.id, rig.join(&second).await.id);
    let (mut one, _) = rig.connect(&first).await;
    let (mut two, _) = rig.connect(&second).await;
    let (one_channel, two_channel) = (one.open_channel().await, two.open_channel().await);
    let sockets = [(); 2].map(|()| FrontSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap());
    let relay = Source { address: rig.address(), local: None };
    for (socket, channel) in sockets.iter().zip([&one_channel, &two_channel]) {
        let mac = bind_mac(&channel.key, channel.channel, 1);
        let frame = Frame::Bind { channel: channel.channel, counter: 1, mac }.encode();
        within(socket.writable()).await.unwrap();
        socket.try_send_train(relay, &frame, frame.len()).unwrap();
        let (bound, _) = within(read_train(socket)).await;
        assert!(matches!(Frame::decode(&bound), Ok(Frame::Bound { .. })));
    }
    let sent = Frame::Data { peer: second_id, channel: one_channel.channel, payload: &[7; 1184] }.encode();
    sockets[0].try_send_train(relay, &sent.repeat(FRAMES), sent.len()).unwrap();
    let expected = Frame::Data { peer: first_id, channel: two_channel.channel, payload: &[7; 1184] };
    let (mut frames, mut reads) = (0, 0);
    while frames < FRAMES {
        let (train, stride) = within(read_train(&sockets[1])).await;
        for frame in train.chunks(stride) {
            assert_eq!(Frame::decode(frame), Ok(expected));
            frames += 1;
        }
        reads += 1;
    }
    assert!(reads <= FRAMES / 4, "{FRAMES} frames arrived in {reads} reads");
    rig.server.stop().await;
}

/// Reads what GRO gives at once, and its stride.
async fn read_train(socket: &FrontSocket) -> (Vec<u8>, usize) {
    let mut bytes = vec![0; 65_536];
    let mut metas = [quinn_udp::RecvMeta::default()];
    loop {
        socket.readable().await.unwrap();
        if socket.try_recv(&mut [IoSliceMut::new(&mut bytes)], &mut metas).is_ok() {
            bytes.truncate(metas[0].len);
            return (bytes, metas[0].stride);
        }
    }
}

#[tokio::test]
async fn a_channel_ends_with_its_node_and_with_the_relay() {
    let rig = Rig::start().await;
    let (agent, other) = (Agent::new("home-a"), Agent::new("home-b"));
    let node = rig.join(&agent).await;
    rig.join(&other).await;
    let (mut client, _) = rig.connect(&agent).await;
    let (mut others, _) = rig.connect(&other).await;
    let channel = client.open_channel().await;
    let kept = others.open_channel().await;
    let (socket, other_socket) = (udp().await, udp().await);
    bind(&socket, rig.address(), &channel, 1).await;
    bind(&other_socket, rig.address(), &kept, 1).await;
    rig.server.registry().remove_node(&node.name).await.unwrap();
    client.hear_refusal().await;
    assert_unknown(&socket, &rig, &channel).await;

    let rig = rig.restart().await;
    assert_unknown(&other_socket, &rig, &kept).await;
    rig.server.stop().await;
}

async fn assert_unknown(
    socket: &tokio::net::UdpSocket,
    rig: &Rig,
    channel: &mesh_proto::control::RelayChannel,
) {
    let mac = bind_mac(&channel.key, channel.channel, 2);
    let frame = Frame::Bind { channel: channel.channel, counter: 2, mac }.encode();
    socket.send_to(&frame, rig.address()).await.unwrap();
    let expected = Frame::UnknownChannel { channel: channel.channel };
    assert_eq!(Frame::decode(&read(socket).await).unwrap(), expected);
}

#[tokio::test]
async fn garbage_of_every_length_gets_no_answer_and_does_no_harm() {
    let rig = Rig::start().await;
    let agent = Agent::new("pi");
    rig.join(&agent).await;
    let socket = udp().await;
    // First bytes of no protocol, of WireGuard, disco, relay and QUIC; bytes from a fixed sequence.
    let mut seed = 0x9e37_79b9_u32;
    for first in [0x00_u8, 0x01, 0x04, 0x05, 0x20, 0x6d, 0x80, 0x82, 0x83, 0xbf, 0x40, 0xc3] {
        for len in 0..=1500 {
            let mut datagram: Vec<u8> = (0..len)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    seed.to_be_bytes()[0]
                })
                .collect();
            if let Some(byte) = datagram.first_mut() {
                *byte = first;
            }
            socket.send_to(&datagram, rig.address()).await.unwrap();
        }
        // Lets the port keep up on a slow machine: what it never received would prove nothing.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut answers = Vec::new();
    let mut buffer = [0; 2048];
    while let Ok(Ok(len)) = tokio::time::timeout(Duration::from_millis(300), socket.recv(&mut buffer)).await {
        answers.push((buffer[0], len));
    }
    // Relay frames of unknown channels are told so; an unknown QUIC version is told which are known, and an
    // unknown connection that it is reset. None of it is more than was sent, and none is for other data.
    for (first, len) in &answers {
        assert!(*first == 0x83 && *len == 16 || *first & 0x40 != 0, "{first:#x} of {len} bytes");
    }
    assert!(answers.iter().filter(|(first, _)| *first == 0x83).count() <= 20);
    let (mut client, _) = rig.connect(&agent).await;
    client.open_channel().await;
    rig.server.stop().await;
}

/// Asks for knocks at an address and returns what comes of it, if anything does.
async fn knock(client: &mut Client, to: SocketAddr, transaction: [u8; 12]) -> Option<Knocking> {
    client.say(&ClientMessage::Knock(Knock { to, transaction })).await;
    client.say(&ClientMessage::Ping { id: 99 }).await;
    let mut found = None;
    loop {
        match client.hear().await {
            ServerMessage::Knocking(knocking) => found = Some(knocking),
            ServerMessage::Pong { id: 99, time_ms } => {
                assert!(time_ms.is_some());
                return found;
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn knocks_come_from_a_second_port_and_go_to_nobody_else() {
    let rig = Rig::start().await;
    let agent = Agent::new("home-a");
    rig.join(&agent).await;
    let mut client = Client::dial(rig.address(), &agent, rig.server.pin()).await.unwrap();
    let welcome = client.hello().await;
    let [second] = welcome.observer_ports[..] else { panic!("{welcome:?}") };
    client.say(&ClientMessage::Connect { public_key: agent.public_key, map: None, instance: None }).await;
    let socket = udp().await;
    let to = socket.local_addr().unwrap();
    let transaction = *b"any-12-bytes";
    let knocking = knock(&mut client, to, transaction).await.expect("somebody knocks");
    assert_eq!((knocking.port, knocking.transaction, &knocking.others[..]), (second, transaction, &[][..]));
    let mut buffer = [0; 100];
    let (len, from) = within(socket.recv_from(&mut buffer)).await.unwrap();
    let expected = stun::Message::BindingSuccess { transaction, mapped: to };
    assert_eq!((stun::Message::decode(&buffer[..len]), from.port()), (Ok(expected), second));
    assert_ne!(second, rig.address().port());

    // It answers STUN as the first port does.
    let request = stun::Message::BindingRequest { transaction }.encode();
    socket.send_to(&request, from).await.unwrap();
    assert_eq!(stun::Message::decode(&read(&socket).await), Ok(expected));

    let third_party = SocketAddr::from(([192, 0, 2, 1], 53));
    assert_eq!(knock(&mut client, third_party, transaction).await, None);
    rig.server.stop().await;
}

#[tokio::test]
async fn a_client_that_asks_for_a_storm_gets_a_handful_of_knocks() {
    let rig = Rig::start().await;
    let agent = Agent::new("home-a");
    rig.join(&agent).await;
    let (mut client, _) = rig.connect(&agent).await;
    let socket = udp().await;
    let to = socket.local_addr().unwrap();
    for _ in 0..100 {
        client.say(&ClientMessage::Knock(Knock { to, transaction: [9; 12] })).await;
    }
    let mut knocks = 0;
    let mut buffer = [0; 100];
    while tokio::time::timeout(Duration::from_millis(300), socket.recv(&mut buffer)).await.is_ok() {
        knocks += 1;
    }
    assert!((1..20).contains(&knocks), "{knocks} knocks");
    rig.server.stop().await;
}
