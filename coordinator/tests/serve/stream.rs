//! The TCP port: byte streams that carry control and relay, and clients that misbehave before they have one.

use std::{sync::Arc, time::Duration};

use mesh_pipe::{CONTROL_ROOM, Ends, Train, TrainSender, carry, trains};
use mesh_proto::{
    control::{ClientMessage, Hello, RelayChannel, ServerMessage, frame},
    netmap::NodeId,
    relay::{Frame, bind_mac},
    stream,
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    net::TcpStream,
    sync::mpsc,
};
use tokio_rustls::TlsConnector;

use super::rig::{Agent, DEADLINE, Rig, bind, join_message, read, udp, within};

/// A node that has nothing but a stream, as behind a proxy that ends the outer TLS.
struct Streamed {
    control: DuplexStream,
    decoder: frame::Decoder,
    outbound: TrainSender,
    inbound: mpsc::Receiver<Train>,
}

impl Streamed {
    async fn dial(rig: &Rig, agent: &Agent) -> Self {
        let tcp = TcpStream::connect(rig.server.tcp_addr()).await.unwrap();
        let pipe = within(mesh_pipe::connect(Box::new(tcp), "pi.example", stream::PATH)).await.unwrap();
        let config =
            mesh_rawkeys::client_config(&agent.identity.pkcs8, rig.server.pin(), stream::ALPN).unwrap();
        let name = ServerName::try_from("mesh").unwrap();
        let session = within(TlsConnector::from(Arc::new(config)).connect(name, pipe)).await.unwrap();
        let (control, far) = duplex(CONTROL_ROOM);
        let (outbound, waiting) = trains(1 << 20);
        let (sender, inbound) = mpsc::channel(16);
        let ends = Ends { control: far, outbound: waiting, inbound: sender };
        tokio::spawn(carry(session, ends, DEADLINE, |train| train));
        let mut streamed = Self { control, decoder: frame::Decoder::default(), outbound, inbound };
        streamed.say(&ClientMessage::Hello(Hello { version: "test".to_owned(), features: vec![] })).await;
        assert!(matches!(streamed.hear().await, ServerMessage::Welcome(_)));
        streamed
    }

    async fn say(&mut self, message: &ClientMessage) {
        self.control.write_all(&frame::encode(message).unwrap()).await.unwrap();
    }

    async fn hear(&mut self) -> ServerMessage {
        within(async {
            loop {
                if let Some(message) = self.decoder.poll_message().unwrap() {
                    return message;
                }
                let mut chunk = [0; 4096];
                let len = self.control.read(&mut chunk).await.unwrap();
                assert!(len > 0, "the stream ended");
                self.decoder.handle_bytes(&chunk[..len]);
            }
        })
        .await
    }

    async fn join(&mut self, rig: &Rig, agent: &Agent) -> NodeId {
        self.say(&join_message(agent, rig.token(1).await)).await;
        loop {
            if let ServerMessage::Joined { node } = self.hear().await {
                return node.id;
            }
        }
    }

    /// Opens the session and a channel, and binds it to the stream.
    async fn open_channel(&mut self, agent: &Agent) -> RelayChannel {
        self.say(&ClientMessage::Connect { public_key: agent.public_key, map: None, instance: None }).await;
        self.say(&ClientMessage::RelayOpen).await;
        let channel = loop {
            if let ServerMessage::RelayOpened(channel) = self.hear().await {
                break channel;
            }
        };
        let mac = bind_mac(&channel.key, channel.channel, 1);
        self.send(&Frame::Bind { channel: channel.channel, counter: 1, mac });
        let train = within(self.inbound.recv()).await.unwrap();
        assert!(matches!(Frame::decode(&train.bytes), Ok(Frame::Bound { counter: 1, .. })));
        channel
    }

    fn send(&self, frame: &Frame<'_>) {
        let bytes = frame.encode();
        assert_eq!(self.outbound.push(&bytes, bytes.len()), 0);
    }
}

#[tokio::test]
async fn a_node_with_nothing_but_a_stream_joins_and_speaks_with_one_on_udp() {
    let rig = Rig::start().await;
    let (first, second) = (Agent::new("office"), Agent::new("home"));
    let mut one = Streamed::dial(&rig, &first).await;
    let (first_id, second_id) = (one.join(&rig, &first).await, rig.join(&second).await.id);
    let one_channel = one.open_channel(&first).await.channel;
    let (mut two, _) = rig.connect(&second).await;
    let two_channel = two.open_channel().await;
    let socket = udp().await;
    bind(&socket, rig.address(), &two_channel, 1).await;
    let two_channel = two_channel.channel;

    // Twenty frames in a train: each its own datagram in the end.
    let sent = Frame::Data { peer: second_id, channel: one_channel, payload: &[7; 1184] }.encode();
    assert_eq!(one.outbound.push(&sent.repeat(20), sent.len()), 0);
    for _ in 0..20 {
        let expected = Frame::Data { peer: first_id, channel: two_channel, payload: &[7; 1184] };
        assert_eq!(Frame::decode(&read(&socket).await), Ok(expected));
    }
    let back = Frame::Data { peer: first_id, channel: two_channel, payload: b"back" };
    socket.send_to(&back.encode(), rig.address()).await.unwrap();
    let train = within(one.inbound.recv()).await.unwrap();
    let expected = Frame::Data { peer: second_id, channel: one_channel, payload: b"back" };
    assert_eq!(Frame::decode(&train.bytes), Ok(expected));
    rig.server.stop().await;
}

#[tokio::test]
async fn one_slow_reader_slows_nobody_else() {
    let rig = Rig::start().await;
    let agents = ["office", "slow", "fast", "other"].map(Agent::new);
    let mut nodes = Vec::new();
    for agent in &agents {
        let mut node = Streamed::dial(&rig, agent).await;
        let id = node.join(&rig, agent).await;
        let channel = node.open_channel(agent).await.channel;
        nodes.push((node, id, channel));
    }
    let [(one, _, channel), (_slow, slow_id, _), (fast, fast_id, _), (other, _, its_channel)] =
        &mut nodes[..]
    else {
        panic!("four")
    };
    // The slow one's channel of 16 trains fills, then its socket, then its queue at the relay; nothing is read.
    let flood = Frame::Data { peer: *slow_id, channel: *channel, payload: &[1; 1300] }.encode().repeat(40);
    for round in 0..1000_u32 {
        one.outbound.push(&flood, 1316);
        if round % 100 == 0 {
            let payload = round.to_be_bytes();
            // Whoever floods may be over its rate, so it is another one that is heard at once.
            other.send(&Frame::Data { peer: *fast_id, channel: *its_channel, payload: &payload });
            let train = within(fast.inbound.recv()).await.unwrap();
            assert!(
                matches!(Frame::decode(&train.bytes), Ok(Frame::Data { payload: got, .. }) if *got == payload)
            );
        }
    }
    let metrics = rig.metrics().await;
    let dropped = metrics.lines().find(|line| line.contains("reason=\"queue_full\"")).unwrap();
    assert!(!dropped.ends_with(" 0"), "{dropped}");
    rig.server.stop().await;
}

#[tokio::test]
async fn who_trickles_or_stops_halfway_is_cut_off_and_others_come_in() {
    let rig = Rig::start().await;
    let mut halfway = Vec::new();
    // A TLS record that never ends, a request that never ends, and a WebSocket in which nothing is said.
    let beginnings = [&[22, 3, 1, 2, 0, 1][..], b"GET /mesh HTTP/1.1\r\nHost: x\r\n", b""];
    for beginning in beginnings.iter().cycle().take(30) {
        let mut tcp = TcpStream::connect(rig.server.tcp_addr()).await.unwrap();
        tcp.write_all(beginning).await.unwrap();
        halfway.push(tcp);
    }
    let tcp = TcpStream::connect(rig.server.tcp_addr()).await.unwrap();
    let mut silent = within(mesh_pipe::connect(Box::new(tcp), "pi.example", stream::PATH)).await.unwrap();
    let agent = Agent::new("office");
    let mut honest = Streamed::dial(&rig, &agent).await;
    honest.join(&rig, &agent).await;
    let patience = DEADLINE + Duration::from_secs(5);
    for tcp in &mut halfway {
        let ended = tokio::time::timeout(patience, tcp.read_to_end(&mut Vec::new())).await;
        assert!(ended.is_ok(), "cut off");
    }
    let ended = tokio::time::timeout(patience, silent.read_to_end(&mut Vec::new())).await;
    assert!(ended.is_ok(), "cut off");
    rig.server.stop().await;
}

#[tokio::test]
async fn garbage_is_closed_without_a_reply() {
    let rig = Rig::start().await;
    let mut client = TcpStream::connect(rig.server.tcp_addr()).await.unwrap();
    client.write_all(&[b'x'; 100_000]).await.unwrap();
    let mut reply = Vec::new();
    // Closed with bytes unread, so the end may be a reset.
    let _ = within(client.read_to_end(&mut reply)).await;
    assert!(reply.is_empty(), "{}", String::from_utf8_lossy(&reply));
    rig.server.stop().await;
}
