//! Carries out what the policy asks: one exchange with the router each, with its own deadline.
//!
//! PCP and NAT-PMP are one datagram each way, sent again after 250, 500 and 1,000 ms (RFC 6886, section 3.1; the three
//! seconds of RFC 6887 are for servers that are far away). The socket is connected to the router: the system drops what
//! comes from elsewhere, and tells at once if the router says that nothing listens.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    time::{Instant, timeout_at},
};

use super::{
    Protocol,
    igd::{self, Service},
    natpmp::{self, NatPmpError},
    pcp::{self, MapRequest, Nonce, PcpError},
    policy::{Ask, Failure, Grant, Held, LIFETIME, Standing},
    router::Router,
};

/// Where PCP and NAT-PMP servers listen.
const PORT: u16 = 5351;
/// How long the answer to each of the datagrams is waited for.
const WAITS: [Duration; 4] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(1000),
    Duration::from_millis(1000),
];

/// Who asks.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    pub(super) router: Router,
    pub(super) port: u16,
    pub(super) nonce: Nonce,
    /// The router's UPnP service, once it was found.
    pub(super) service: Option<Service>,
}

/// What came of an ask.
#[derive(Debug)]
pub(super) enum Outcome {
    Probed(Protocol, Result<Option<Service>, Failure>),
    Mapped(Result<Grant, Failure>),
    Checked(Result<Standing, Failure>),
}

impl Asker {
    /// Asks once.
    pub(super) async fn ask(self, ask: Ask) -> Outcome {
        match ask {
            Ask::Probe(protocol) => Outcome::Probed(protocol, self.probe(protocol).await),
            Ask::Map { protocol, port, leftover } => {
                if let Some(leftover) = leftover {
                    let outcome = self.remove(leftover).await;
                    tracing::debug!(?outcome, "the mapping of an earlier run is removed");
                }
                Outcome::Mapped(self.map(protocol, port).await)
            }
            Ask::Check(held) => Outcome::Checked(self.check(held).await),
        }
    }

    /// Removes a mapping.
    pub(super) async fn remove(&self, held: Held) -> Result<(), Failure> {
        let ours = Self { port: held.internal_port, ..self.clone() };
        match held.protocol {
            Protocol::Pcp => ours.map_pcp(held.external.port(), Duration::ZERO).await.map(drop),
            Protocol::NatPmp => {
                let question = natpmp::map(held.internal_port, 0, 0);
                let read = |datagram: &[u8]| Ok(natpmp::read_map(datagram, held.internal_port)?);
                exchange(self.router, &question, read).await.map(drop)
            }
            Protocol::Upnp => igd::remove(self.router, &self.service().await?, held.external.port()).await,
        }
    }

    async fn probe(&self, protocol: Protocol) -> Result<Option<Service>, Failure> {
        match protocol {
            Protocol::Pcp => self.announce().await.map(|_| None),
            Protocol::NatPmp => self.outside().await.map(|_| None),
            Protocol::Upnp => igd::find(self.router).await.map(Some),
        }
    }

    async fn map(&self, protocol: Protocol, port: u16) -> Result<Grant, Failure> {
        match protocol {
            Protocol::Pcp => self.map_pcp(port, LIFETIME).await,
            Protocol::NatPmp => {
                let question = natpmp::map(self.port, port, seconds(LIFETIME));
                let read = |datagram: &[u8]| Ok(natpmp::read_map(datagram, self.port)?);
                let granted = exchange(self.router, &question, read).await?;
                let outside = self.outside().await?;
                Ok(Grant {
                    external: SocketAddrV4::new(outside.address, granted.external_port),
                    lifetime: Duration::from_secs(granted.lifetime.into()),
                    epoch: Some(granted.epoch),
                })
            }
            Protocol::Upnp => igd::map(self.router, &self.service().await?, self.port, port).await,
        }
    }

    async fn check(&self, held: Held) -> Result<Standing, Failure> {
        match held.protocol {
            Protocol::Pcp => {
                let epoch = self.announce().await?;
                Ok(Standing { epoch: Some(epoch), address: None })
            }
            Protocol::NatPmp => {
                let outside = self.outside().await?;
                Ok(Standing { epoch: Some(outside.epoch), address: Some(outside.address) })
            }
            Protocol::Upnp => igd::check(self.router, &self.service().await?, &held).await,
        }
    }

    async fn announce(&self) -> Result<u32, Failure> {
        let question = pcp::announce(self.router.local);
        exchange(self.router, &question, |datagram| Ok(pcp::read_announce(datagram)?)).await
    }

    async fn outside(&self) -> Result<natpmp::Outside, Failure> {
        exchange(self.router, &natpmp::address(), |datagram| Ok(natpmp::read_address(datagram)?)).await
    }

    async fn map_pcp(&self, port: u16, lifetime: Duration) -> Result<Grant, Failure> {
        let request = MapRequest {
            client: self.router.local,
            nonce: self.nonce,
            internal_port: self.port,
            suggested: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port),
            lifetime: seconds(lifetime),
        };
        let read = |datagram: &[u8]| Ok(pcp::read_map(datagram, &request)?);
        let granted = exchange(self.router, &pcp::map(&request), read).await?;
        Ok(Grant {
            external: granted.external,
            lifetime: Duration::from_secs(granted.lifetime.into()),
            epoch: Some(granted.epoch),
        })
    }

    /// The service that was found, or that is found now: a mapping of an earlier run may be of another protocol.
    async fn service(&self) -> Result<Service, Failure> {
        match &self.service {
            Some(service) => Ok(service.clone()),
            None => igd::find(self.router).await,
        }
    }
}

/// What a datagram says that is no good answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bad {
    /// The router's last word.
    Refused,
    /// Not the answer; that may still come.
    Garbage,
}

/// Sends a question until a good answer comes.
async fn exchange<T>(
    router: Router,
    question: &[u8],
    read: impl Fn(&[u8]) -> Result<T, Bad>,
) -> Result<T, Failure> {
    let unreachable = |error: std::io::Error| {
        tracing::trace!(%error, "the router cannot be asked");
        Failure::Silent
    };
    let socket = UdpSocket::bind((router.local, 0)).await.map_err(unreachable)?;
    socket.connect((router.gateway, PORT)).await.map_err(unreachable)?;
    let mut buffer = [0; pcp::MAX_LEN];
    let mut failure = Failure::Silent;
    for wait in WAITS {
        socket.send(question).await.map_err(unreachable)?;
        let deadline = Instant::now() + wait;
        // A refused connection, after a datagram that made no sense, is told by the first error.
        while let Ok(received) = timeout_at(deadline, socket.recv(&mut buffer)).await {
            let len = received.map_err(|error| {
                tracing::trace!(%error, "the router does not listen");
                failure
            })?;
            match read(&buffer[..len]) {
                Ok(answer) => return Ok(answer),
                Err(Bad::Refused) => return Err(Failure::Refused),
                Err(Bad::Garbage) => failure = Failure::Garbage,
            }
        }
    }
    Err(failure)
}

impl From<PcpError> for Bad {
    fn from(error: PcpError) -> Self {
        tracing::trace!(%error, "pcp");
        match error {
            PcpError::Refused(_) | PcpError::Version => Self::Refused,
            PcpError::Truncated | PcpError::Unrelated | PcpError::Address => Self::Garbage,
        }
    }
}

impl From<NatPmpError> for Bad {
    fn from(error: NatPmpError) -> Self {
        tracing::trace!(%error, "nat-pmp");
        match error {
            NatPmpError::Refused(_) | NatPmpError::Version => Self::Refused,
            NatPmpError::Truncated | NatPmpError::Unrelated => Self::Garbage,
        }
    }
}

fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;
