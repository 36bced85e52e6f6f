//! The way to IPv4 from a network without it: the prefixes behind which the network translates.
//!
//! Named by the operator, or asked of the system's own resolvers (RFC 7050) as names of the underlay are ([`mesh_names`]):
//! never through the mesh, whose other end may stand in a network that translates where this one does not. Asked once per
//! network, and again from time to time. Nothing is trusted because of a prefix: what is behind it has to prove its key
//! like everybody else.
//!
//! One task asks ahead; whoever dials before it is done asks for itself.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ipnet::IpNet;
use mesh_names::NameError;
use mesh_proto::nat64::{Nat64Prefix, WELL_KNOWN_NAME};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Pause after an answer. Prefixes are as durable as networks; the name's records live for a day.
const REFRESH: Duration = Duration::from_secs(900);
/// Pause after the first question that was not answered; it doubles.
const RETRY: Duration = Duration::from_secs(1);
/// The longest pause after a question that was not answered: there may be no such name here.
const MAX_RETRY: Duration = Duration::from_secs(300);
/// Prefixes that are used; what goes beyond is cut. A second one is there while a network changes from one to the other.
const MAX_PREFIXES: usize = 2;

/// Where prefixes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// From the system's resolvers.
    #[default]
    Auto,
    /// From nowhere.
    Off,
    /// From the operator.
    Prefix(Nat64Prefix),
}

/// Why a text is no mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("neither auto nor off, nor an IPv6 prefix of 32, 40, 48, 56, 64 or 96 bits")]
pub struct InvalidMode;

/// The prefixes of the network that this host is in. Clones are one.
#[derive(Debug, Clone)]
pub struct Nat64 {
    shared: Arc<Shared>,
}

/// Tells of changes of the prefixes.
#[derive(Debug)]
pub struct Changes {
    nat64: Nat64,
    receiver: watch::Receiver<Known>,
}

#[derive(Debug)]
struct Shared {
    mode: Mode,
    known: watch::Sender<Known>,
    /// Where no resolver is asked.
    mesh: Mutex<Vec<IpNet>>,
}

/// What is known of one network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Known {
    /// Counts networks.
    network: u64,
    prefixes: Vec<Nat64Prefix>,
    /// Whether the resolvers have answered.
    answered: bool,
}

impl FromStr for Mode {
    type Err = InvalidMode;

    fn from_str(text: &str) -> Result<Self, InvalidMode> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            prefix => prefix.parse().map(Self::Prefix).map_err(|_| InvalidMode),
        }
    }
}

impl Default for Nat64 {
    fn default() -> Self {
        Self::new(Mode::default())
    }
}

impl Nat64 {
    /// Asks nobody yet.
    #[must_use]
    pub fn new(mode: Mode) -> Self {
        let prefixes = match mode {
            Mode::Auto | Mode::Off => Vec::new(),
            Mode::Prefix(prefix) => vec![prefix],
        };
        let known = Known { prefixes, answered: mode != Mode::Auto, network: 0 };
        let known = watch::Sender::new(known);
        Self { shared: Arc::new(Shared { mode, known, mesh: Mutex::default() }) }
    }

    /// Starts the task that asks ahead.
    pub fn spawn(&self, cancel: &CancellationToken, tracker: &TaskTracker) {
        if self.shared.mode == Mode::Auto {
            let (nat64, cancel) = (self.clone(), cancel.clone());
            tracker.spawn(async move { nat64.keep_asking(&cancel).await });
        }
    }

    /// Returns the prefixes that are known now.
    #[must_use]
    pub fn prefixes(&self) -> Vec<Nat64Prefix> {
        self.shared.known.borrow().prefixes.clone()
    }

    /// Returns the prefixes, and asks for them if they are not known. Cancel-safe.
    pub async fn find(&self) -> Vec<Nat64Prefix> {
        let known = self.shared.known.borrow().clone();
        if known.answered {
            return known.prefixes;
        }
        self.ask().await.unwrap_or_default()
    }

    /// Returns the IPv4 address that is meant by one behind a prefix, else the address itself.
    #[must_use]
    pub fn meant(&self, address: SocketAddr) -> SocketAddr {
        let SocketAddr::V6(v6) = address else { return address };
        let known = self.shared.known.borrow();
        let meant = known.prefixes.iter().find_map(|prefix| prefix.extract(*v6.ip()));
        meant.map_or(address, |v4| (v4, address.port()).into())
    }

    /// The host is in another network, perhaps: what was known holds until the resolvers say something else.
    pub fn network_changed(&self) {
        if self.shared.mode == Mode::Auto {
            self.shared.known.send_modify(|known| {
                known.network += 1;
                known.answered = false;
            });
        }
    }

    /// Returns what tells of changes.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes { nat64: self.clone(), receiver: self.shared.known.subscribe() }
    }

    async fn keep_asking(&self, cancel: &CancellationToken) {
        let mut changes = self.shared.known.subscribe();
        let mut retry = RETRY;
        loop {
            let network = changes.borrow_and_update().network;
            let asked = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                asked = self.ask() => asked,
            };
            let pause = match asked {
                Ok(_) => REFRESH,
                Err(_) => retry,
            };
            retry = if asked.is_ok() { RETRY } else { (retry * 2).min(MAX_RETRY) };
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                // The sender lives as long as this.
                _ = changes.wait_for(|known| known.network != network) => retry = RETRY,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// These are the mesh's ranges: no resolver in them is asked, nor one that is reached through them.
    pub fn set_mesh(&self, mesh: Vec<IpNet>) {
        *self.mesh() = mesh;
    }

    fn mesh(&self) -> MutexGuard<'_, Vec<IpNet>> {
        // It is whole after every statement.
        self.shared.mesh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self) -> Result<Vec<Nat64Prefix>, NameError> {
        let network = self.shared.known.borrow().network;
        let mesh = self.mesh().clone();
        let found = lookup(&mesh).await;
        match &found {
            Ok(prefixes) => {
                tracing::debug!(?prefixes, "the network's translation prefixes");
                self.shared.known.send_if_modified(|known| {
                    let is_news =
                        known.network == network && (!known.answered || known.prefixes != *prefixes);
                    if is_news {
                        *known = Known { network, prefixes: prefixes.clone(), answered: true };
                    }
                    is_news
                });
            }
            Err(error) => tracing::debug!(%error, "no resolver tells of translation prefixes"),
        }
        found
    }
}

impl Changes {
    /// Waits until there are other prefixes, or may be. Cancel-safe.
    pub async fn changed(&mut self) {
        // The sender lives as long as this.
        let _ = self.receiver.changed().await;
    }

    /// Returns the prefixes that are known now.
    pub fn prefixes(&self) -> Vec<Nat64Prefix> {
        self.nat64.prefixes()
    }

    /// The host is in another network, perhaps.
    pub fn network_changed(&self) {
        self.nat64.network_changed();
    }

    /// These are the mesh's ranges.
    pub fn set_mesh(&self, mesh: Vec<IpNet>) {
        self.nat64.set_mesh(mesh);
    }
}

/// Asks for the IPv6 addresses of the well-known name, which has none of its own.
async fn lookup(mesh: &[IpNet]) -> Result<Vec<Nat64Prefix>, NameError> {
    let addresses = match mesh_names::lookup_v6(WELL_KNOWN_NAME, mesh).await {
        Ok(answer) => answer.addresses,
        Err(NameError::NotFound { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let v6: BTreeSet<_> = addresses
        .into_iter()
        .filter_map(|address| match address {
            IpAddr::V6(v6) => Some(v6),
            IpAddr::V4(_) => None,
        })
        .collect();
    let mut prefixes = Nat64Prefix::find(v6);
    prefixes.truncate(MAX_PREFIXES);
    Ok(prefixes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read() {
        assert_eq!("auto".parse(), Ok(Mode::Auto));
        assert_eq!("off".parse(), Ok(Mode::Off));
        assert_eq!("64:ff9b::/96".parse(), Ok(Mode::Prefix("64:ff9b::/96".parse().unwrap())));
        assert_eq!("64:ff9b::/97".parse::<Mode>(), Err(InvalidMode));
    }

    #[tokio::test]
    async fn what_the_operator_names_is_known_at_once_and_stays() {
        let nat64 = Nat64::new("64:ff9b::/96".parse().unwrap());
        assert_eq!(nat64.find().await, ["64:ff9b::/96".parse().unwrap()]);
        nat64.network_changed();
        assert_eq!(nat64.find().await.len(), 1);
        let meant = |text: &str| nat64.meant(text.parse().unwrap()).to_string();
        assert_eq!(meant("[64:ff9b::c000:201]:7"), "192.0.2.1:7");
        assert_eq!(meant("[2001:db8::1]:7"), "[2001:db8::1]:7");
        assert_eq!(meant("192.0.2.1:7"), "192.0.2.1:7");
        assert!(Nat64::new(Mode::Off).find().await.is_empty());
    }
}
