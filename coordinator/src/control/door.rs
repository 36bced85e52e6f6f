//! Where connections come in, over whichever carrier: a place for each, a deadline, Hello and Welcome.

use std::{future::Future, net::IpAddr, sync::Arc, time::Duration};

use mesh_proto::control::{ClientMessage, EXPLICIT_REMOVALS, RefusalCode, ServerMessage, Welcome};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    VERSION,
    gate::{AddressProof, Admission, Gate, Place},
    link::Link,
    refusal,
    server::{refuse, refuse_broken},
    stats::ControlStats,
};

/// From the first packet until a node is known.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// What a stranger may send before it is known: Hello, Join and Connect take less than 1 KiB.
const STRANGER_ALLOWANCE: usize = 16 << 10;

/// Takes over connections whose other side has said Hello.
pub trait Service: Send + Sync + 'static {
    /// Serves a connection to its end. Ends soon, and politely, once `cancel` is cancelled.
    fn serve(
        self: Arc<Self>,
        stranger: Stranger,
        cancel: CancellationToken,
    ) -> impl Future<Output = ()> + Send;
}

/// A connection whose other side has proved a key and said Hello, and may or may not be a node.
pub struct Stranger {
    /// The connection.
    pub link: Link,
    /// Its place at the door, to be dropped when the other side is known.
    pub place: Place,
    /// When it has to be known.
    pub deadline: Instant,
}

/// The door of a service. Cheap to clone.
pub struct Door<S> {
    service: Arc<S>,
    pub(super) stats: Arc<ControlStats>,
    gate: Gate,
    /// What Welcome says.
    observer_ports: Arc<[u16]>,
    features: Arc<[String]>,
}

impl<S> Clone for Door<S> {
    fn clone(&self) -> Self {
        Self {
            service: self.service.clone(),
            stats: self.stats.clone(),
            gate: self.gate.clone(),
            observer_ports: self.observer_ports.clone(),
            features: self.features.clone(),
        }
    }
}

impl<S: Service> Door<S> {
    /// Makes the door of a service.
    #[must_use]
    pub fn new(service: Arc<S>, stats: Arc<ControlStats>) -> Self {
        let gate = Gate::new(std::time::Instant::now());
        let features = [EXPLICIT_REMOVALS.to_owned()].into();
        Self { service, stats, gate, observer_ports: [].into(), features }
    }

    /// Says to everybody which further UDP ports of this host answer STUN.
    #[must_use]
    pub fn with_observers(self, ports: impl IntoIterator<Item = u16>) -> Self {
        Self { observer_ports: ports.into_iter().collect(), ..self }
    }

    /// Says to everybody that the service has a feature.
    #[must_use]
    pub fn with_feature(self, feature: &str) -> Self {
        let features = self.features.iter().cloned().chain([feature.to_owned()]).collect();
        Self { features, ..self }
    }

    /// Takes a place for a connection over TCP, whose source address is proved; `None` if there is none.
    #[must_use]
    pub fn try_enter_tcp(&self, source: IpAddr) -> Option<Place> {
        match self.try_enter(source, AddressProof::Proved) {
            Admission::Enter(place) => Some(place),
            Admission::ProveAddress | Admission::Full => None,
        }
    }

    pub(super) fn try_enter(&self, source: IpAddr, proof: AddressProof) -> Admission {
        self.gate.try_enter(std::time::Instant::now(), source, proof)
    }

    /// Serves a connection to its end. `open` takes it from its first byte to a proved key, or fails; it is given up
    /// at the deadline, wherever it is.
    pub async fn serve(
        self,
        place: Place,
        open: impl Future<Output = Option<Link>>,
        cancel: CancellationToken,
    ) {
        let deadline = Instant::now() + HANDSHAKE_DEADLINE;
        let handshake = async {
            let link = open.await?;
            self.stats.connections.increment();
            self.greet(link).await
        };
        let link = tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            link = tokio::time::timeout_at(deadline, handshake) => link.ok().flatten(),
        };
        match link {
            Some(link) => self.service.serve(Stranger { link, place, deadline }, cancel).await,
            None => self.stats.handshake_failures.increment(),
        }
    }

    /// Expects Hello and answers Welcome.
    async fn greet(&self, mut link: Link) -> Option<Link> {
        link.set_allowance(Some(STRANGER_ALLOWANCE));
        match link.recv().await {
            Ok(ClientMessage::Hello(hello)) => {
                tracing::debug!(version = hello.version, "hello");
                let welcome = Welcome {
                    version: VERSION.to_owned(),
                    features: self.features.to_vec(),
                    observed: link.remote,
                    observer_ports: self.observer_ports.to_vec(),
                };
                link.send(&ServerMessage::Welcome(welcome)).await.ok()?;
                Some(link)
            }
            Ok(_) => {
                refuse(
                    link,
                    &self.stats,
                    refusal(RefusalCode::Protocol, "the first message has to be hello"),
                )
                .await;
                None
            }
            Err(error) => {
                refuse_broken(link, &self.stats, &error).await;
                None
            }
        }
    }
}
