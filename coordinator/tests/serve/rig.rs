//! A coordinator on loopback, and clients that speak to it through real sockets.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use mesh_coordinator::{
    identity::Identity,
    registry::{MeshOptions, RoutePolicy, TokenSpec},
    relay::Limits,
    serve::{ServeOptions, Server},
};
use mesh_proto::{
    control::{ALPN, ClientMessage, Hello, RefusalCode, RelayChannel, ServerMessage, Welcome, frame},
    key::{KeyPin, PublicKey},
    netmap::{NetworkMap, Node},
    relay::{Frame, bind_mac},
    token::JoinToken,
};
use quinn::crypto::rustls::QuicClientConfig;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
};

/// Everything that is awaited comes within this, or the test fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

pub(crate) struct Rig {
    pub(crate) server: Server,
    pub(crate) state: TempDir,
}

/// A node-to-be with its keys.
pub(crate) struct Agent {
    pub(crate) identity: Identity,
    pub(crate) public_key: PublicKey,
    pub(crate) name: String,
    _keys: Option<TempDir>,
}

/// A control connection.
pub(crate) struct Client {
    pub(crate) connection: quinn::Connection,
    pub(crate) send: quinn::SendStream,
    recv: quinn::RecvStream,
    decoder: frame::Decoder,
    _endpoint: quinn::Endpoint,
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("took longer than the deadline")
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::start_in(TempDir::new().unwrap()).await
    }

    /// Starts with the state that is there.
    pub(crate) async fn start_in(state: TempDir) -> Self {
        let server = start_server(&state, "127.0.0.1:0").await;
        Self { server, state }
    }

    /// Stops the coordinator and starts it again, on the same port with the same state.
    pub(crate) async fn restart(self) -> Self {
        let address = self.server.udp_addr();
        self.server.stop().await;
        let server = start_server(&self.state, &address.to_string()).await;
        Self { server, state: self.state }
    }

    /// Stops the coordinator and starts it again with the same state, on a port of its own: clients that do not listen
    /// keep the old one busy.
    pub(crate) async fn restart_elsewhere(self) -> Self {
        self.server.stop().await;
        let server = start_server(&self.state, "127.0.0.1:0").await;
        Self { server, state: self.state }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.udp_addr()
    }

    pub(crate) async fn token(&self, uses: u32) -> JoinToken {
        self.token_with_tags(uses, &[]).await
    }

    pub(crate) async fn token_with_tags(&self, uses: u32, tags: &[&str]) -> JoinToken {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        let spec = TokenSpec { ttl: Duration::from_secs(3600), uses, tags };
        self.server.registry().create_token(spec).await.unwrap()
    }

    /// Reads the metrics, as Prometheus does.
    pub(crate) async fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.server.metrics_addr().unwrap()).await.unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut text = String::new();
        within(stream.read_to_string(&mut text)).await.unwrap();
        text
    }

    /// Says Hello as an agent.
    pub(crate) async fn hello(&self, agent: &Agent) -> Client {
        let mut client = Client::dial(self.address(), agent, self.server.pin()).await.unwrap();
        client.hello().await;
        client
    }

    /// Registers an agent.
    pub(crate) async fn join(&self, agent: &Agent) -> Node {
        let token = self.token(1).await;
        let mut client = self.hello(agent).await;
        client.join(agent, token).await
    }

    /// Opens the session of a registered agent; returns its map, too.
    pub(crate) async fn connect(&self, agent: &Agent) -> (Client, NetworkMap) {
        let mut client = self.hello(agent).await;
        client.say(&ClientMessage::Connect { public_key: agent.public_key, map: None, instance: None }).await;
        match client.hear().await {
            ServerMessage::Map { map } => (client, *map),
            other => panic!("expected a map, got {other:?}"),
        }
    }
}

async fn start_server(state: &TempDir, address: &str) -> Server {
    let options = ServeOptions {
        dyndns: None,
        kubernetes: None,
        listen_stun: Some("127.0.0.1:0".parse().unwrap()),
        state_dir: state.path().to_owned(),
        listen_udp: address.parse().unwrap(),
        listen_tcp: "127.0.0.1:0".parse().unwrap(),
        metrics: Some("127.0.0.1:0".parse().unwrap()),
        mesh: MeshOptions {
            ipv4: "10.90.0.0/16".parse().unwrap(),
            coordinators: vec!["127.0.0.1:7443".to_owned()],
            relay_name: "pi".to_owned(),
            routes: RoutePolicy::default(),
        },
        relay: Limits::default(),
    };
    Server::start(options).await.unwrap()
}

impl Agent {
    /// Takes keys that are known.
    pub(crate) fn of(pkcs8: Vec<u8>, public_key: PublicKey, name: &str) -> Self {
        let identity = Identity::from_pkcs8(pkcs8.into()).unwrap();
        Self { identity, public_key, name: name.to_owned(), _keys: None }
    }

    pub(crate) fn new(name: &str) -> Self {
        let keys = TempDir::new().unwrap();
        let identity = Identity::load_or_create(keys.path()).unwrap();
        let public_key = PublicKey(identity.node_key.0);
        Self { identity, public_key, name: name.to_owned(), _keys: Some(keys) }
    }
}

/// Makes a QUIC configuration; the test may spoil the TLS configuration first.
pub(crate) fn client_config(
    agent: &Agent,
    pin: KeyPin,
    change: impl FnOnce(&mut rustls::ClientConfig),
) -> quinn::ClientConfig {
    let mut tls = mesh_rawkeys::client_config(&agent.identity.pkcs8, pin, ALPN).unwrap();
    change(&mut tls);
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}

pub(crate) async fn dial(
    address: SocketAddr,
    config: quinn::ClientConfig,
) -> Result<(quinn::Endpoint, quinn::Connection), quinn::ConnectionError> {
    let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let connecting = endpoint.connect_with(config, address, "coordinator").unwrap();
    let connected = tokio::time::timeout(DEADLINE, connecting).await;
    let connection = connected.map_err(|_elapsed| quinn::ConnectionError::TimedOut)??;
    Ok((endpoint, connection))
}

impl Client {
    pub(crate) async fn dial(
        address: SocketAddr,
        agent: &Agent,
        pin: KeyPin,
    ) -> Result<Self, quinn::ConnectionError> {
        let (endpoint, connection) = dial(address, client_config(agent, pin, |_| {})).await?;
        let (send, recv) = connection.open_bi().await?;
        Ok(Self { connection, send, recv, decoder: frame::Decoder::default(), _endpoint: endpoint })
    }

    pub(crate) async fn hello(&mut self) -> Welcome {
        self.say(&ClientMessage::Hello(Hello { version: "test".to_owned(), features: vec![] })).await;
        match self.hear().await {
            ServerMessage::Welcome(welcome) => {
                assert!(welcome.observed.ip().is_loopback());
                welcome
            }
            other => panic!("expected a welcome, got {other:?}"),
        }
    }

    pub(crate) async fn join(&mut self, agent: &Agent, token: JoinToken) -> Node {
        self.say(&join_message(agent, token)).await;
        match self.hear().await {
            ServerMessage::Joined { node } => node,
            other => panic!("expected to be joined, got {other:?}"),
        }
    }

    pub(crate) async fn say(&mut self, message: &ClientMessage) {
        self.try_say(message).await.expect("the connection ended");
    }

    /// Says something; `None` if the connection has ended.
    pub(crate) async fn try_say(&mut self, message: &ClientMessage) -> Option<()> {
        self.send.write_all(&frame::encode(message).unwrap()).await.ok()
    }

    /// Waits for the next message.
    pub(crate) async fn hear(&mut self) -> ServerMessage {
        self.try_hear().await.expect("the connection ended")
    }

    /// Waits for the next message; `None` at the end of the connection.
    pub(crate) async fn try_hear(&mut self) -> Option<ServerMessage> {
        self.try_hear_within(DEADLINE).await
    }

    pub(crate) async fn try_hear_within(&mut self, deadline: Duration) -> Option<ServerMessage> {
        tokio::time::timeout(deadline, async {
            loop {
                if let Some(message) = self.decoder.poll_message().unwrap() {
                    return Some(message);
                }
                let mut chunk = [0; 4096];
                let len = self.recv.read(&mut chunk).await.ok()??;
                self.decoder.handle_bytes(&chunk[..len]);
            }
        })
        .await
        .expect("took longer than the deadline")
    }

    /// Waits for a message that the test looks for, past others.
    pub(crate) async fn hear_until<T>(&mut self, mut wanted: impl FnMut(&ServerMessage) -> Option<T>) -> T {
        loop {
            let message = self.hear().await;
            if let Some(found) = wanted(&message) {
                return found;
            }
        }
    }

    /// Waits for a refusal, past other messages, and for the end after it.
    pub(crate) async fn hear_refusal(&mut self) -> RefusalCode {
        let code = self
            .hear_until(|message| match message {
                ServerMessage::Refused(refusal) => Some(refusal.code),
                _ => None,
            })
            .await;
        assert!(self.try_hear().await.is_none(), "the connection ends after a refusal");
        code
    }

    pub(crate) async fn open_channel(&mut self) -> RelayChannel {
        self.say(&ClientMessage::RelayOpen).await;
        self.hear_until(|message| match message {
            ServerMessage::RelayOpened(channel) => Some(channel.clone()),
            _ => None,
        })
        .await
    }
}

pub(crate) fn join_message(agent: &Agent, token: JoinToken) -> ClientMessage {
    ClientMessage::Join { token, name: agent.name.parse().unwrap(), public_key: agent.public_key }
}

pub(crate) async fn udp() -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap()
}

pub(crate) async fn read(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65_536];
    let len = within(socket.recv(&mut buffer)).await.unwrap();
    buffer.truncate(len);
    buffer
}

/// Binds a channel to a socket and waits for Bound.
pub(crate) async fn bind(socket: &UdpSocket, relay: SocketAddr, channel: &RelayChannel, counter: u64) {
    let mac = bind_mac(&channel.key, channel.channel, counter);
    let frame = Frame::Bind { channel: channel.channel, counter, mac }.encode();
    socket.send_to(&frame, relay).await.unwrap();
    let expected = Frame::Bound { channel: channel.channel, counter, observed: socket.local_addr().unwrap() };
    assert_eq!(Frame::decode(&read(socket).await).unwrap(), expected);
}
