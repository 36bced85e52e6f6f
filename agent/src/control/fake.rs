//! A coordinator (or relay) in a test's hands: it says what the test tells it to.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mesh_proto::{
    control::{
        ALPN, ClientMessage, Refusal, RefusalCode, ServerMessage, Welcome,
        frame::{Decoder, encode},
    },
    key::{KeyPin, NodeKey},
};
use quinn::{
    Connection, ConnectionError, Endpoint, RecvStream, SendStream, crypto::rustls::QuicServerConfig,
};
use rustls::pki_types::CertificateDer;
use tokio::{
    sync::{Mutex, mpsc},
    time::timeout,
};

use crate::identity::Identity;

/// A message that does not come by then does not come.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server with a key of its own on a loopback port.
pub(super) struct FakeCoordinator {
    pub(super) endpoint: Endpoint,
    pub(super) identity: Identity,
}

/// One connection of an agent.
pub(super) struct FakeSession {
    pub(super) connection: Connection,
    pub(super) node_key: NodeKey,
    send: Arc<Mutex<SendStream>>,
    messages: mpsc::UnboundedReceiver<ClientMessage>,
    answers_pings: Arc<AtomicBool>,
}

impl FakeCoordinator {
    pub(super) fn start() -> Self {
        Self::with_identity(Identity::generate().unwrap(), ([127, 0, 0, 1], 0).into())
    }

    /// Starts with these versions of the protocol, the best first.
    pub(super) fn speaking(protocols: &[&[u8]]) -> Self {
        let identity = Identity::generate().unwrap();
        let config = server_config(&identity, protocols);
        let endpoint = Endpoint::server(config, ([127, 0, 0, 1], 0).into()).unwrap();
        Self { endpoint, identity }
    }

    /// Starts with a key and an address that were in use before.
    pub(super) fn with_identity(identity: Identity, address: SocketAddr) -> Self {
        let endpoint = Endpoint::server(server_config(&identity, &[ALPN]), address).unwrap();
        Self { endpoint, identity }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.endpoint.local_addr().unwrap()
    }

    pub(super) fn key(&self) -> NodeKey {
        self.identity.node_key()
    }

    pub(super) fn pin(&self) -> KeyPin {
        KeyPin::of_spki(&self.key().to_spki())
    }

    /// Waits for a connection attempt, and for how it ends.
    pub(super) async fn accept_connection(&self) -> Result<Connection, ConnectionError> {
        timeout(PATIENCE, self.endpoint.accept()).await.expect("an agent connects").unwrap().await
    }

    /// Waits for an agent, and answers its Hello.
    pub(super) async fn accept(&self) -> FakeSession {
        self.accept_with(&[]).await
    }

    /// As [`Self::accept`], with features.
    pub(super) async fn accept_with(&self, features: &[&str]) -> FakeSession {
        let mut session = self.accept_silently().await;
        assert!(matches!(session.recv().await, ClientMessage::Hello(_)));
        let observed = session.connection.remote_address();
        let features = features.iter().map(|&feature| feature.to_owned()).collect();
        let welcome = Welcome { version: "fake".to_owned(), features, observed, observer_ports: vec![] };
        session.send(ServerMessage::Welcome(welcome)).await;
        session
    }

    /// Waits for an agent, and says nothing.
    pub(super) async fn accept_silently(&self) -> FakeSession {
        let connection = self.accept_connection().await.unwrap();
        let spki = connection.peer_identity().unwrap().downcast::<Vec<CertificateDer<'static>>>().unwrap();
        let node_key = NodeKey::from_spki(&spki[0]).unwrap();
        let (send, recv) = timeout(PATIENCE, connection.accept_bi()).await.expect("a stream").unwrap();
        let (send, answers_pings) = (Arc::new(Mutex::new(send)), Arc::new(AtomicBool::new(true)));
        let (forward, messages) = mpsc::unbounded_channel();
        tokio::spawn(read(recv, send.clone(), answers_pings.clone(), forward));
        FakeSession { connection, node_key, send, messages, answers_pings }
    }
}

impl FakeSession {
    pub(super) async fn send(&mut self, message: ServerMessage) {
        self.send.lock().await.write_all(&encode(&message).unwrap()).await.unwrap();
    }

    /// Sends bytes that were recorded.
    pub(super) async fn send_bytes(&mut self, bytes: &[u8]) {
        self.send.lock().await.write_all(bytes).await.unwrap();
    }

    /// Answers no Ping any more; the test gets them.
    pub(super) fn stop_answering(&self) {
        self.answers_pings.store(false, Ordering::Relaxed);
    }

    pub(super) async fn recv(&mut self) -> ClientMessage {
        timeout(PATIENCE, self.try_recv()).await.expect("a message").expect("a connection")
    }

    /// Waits for a message, or for the end of the connection.
    pub(super) async fn try_recv(&mut self) -> Option<ClientMessage> {
        self.messages.recv().await
    }

    /// Waits for the first message that `pick` takes.
    pub(super) async fn recv_until<T>(&mut self, mut pick: impl FnMut(ClientMessage) -> Option<T>) -> T {
        loop {
            if let Some(picked) = pick(self.recv().await) {
                return picked;
            }
        }
    }

    /// Refuses, and closes as the coordinator does.
    pub(super) async fn refuse(mut self, code: RefusalCode, retry_after_ms: Option<u64>) {
        let refusal = Refusal { code, message: "because".to_owned(), retry_after_ms };
        self.send(ServerMessage::Refused(refusal)).await;
        self.send.lock().await.finish().unwrap();
        let _ = timeout(PATIENCE, self.connection.closed()).await;
    }
}

/// Hands messages on, and answers Pings.
async fn read(
    mut recv: RecvStream,
    send: Arc<Mutex<SendStream>>,
    answers_pings: Arc<AtomicBool>,
    forward: mpsc::UnboundedSender<ClientMessage>,
) {
    let mut decoder = Decoder::default();
    while let Ok(Some(chunk)) = recv.read_chunk(4096, true).await {
        decoder.handle_bytes(&chunk.bytes);
        while let Some(message) = decoder.poll_message().unwrap() {
            let sent = match message {
                ClientMessage::Ping { id } if answers_pings.load(Ordering::Relaxed) => {
                    let pong = encode(&ServerMessage::Pong { id, time_ms: None }).unwrap();
                    send.lock().await.write_all(&pong).await.is_ok()
                }
                message => forward.send(message).is_ok(),
            };
            if !sent {
                return;
            }
        }
    }
}

fn server_config(identity: &Identity, protocols: &[&[u8]]) -> quinn::ServerConfig {
    let mut tls = mesh_rawkeys::server_config(identity.node_key_pkcs8().secret_pkcs8_der(), ALPN).unwrap();
    tls.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()))
}
