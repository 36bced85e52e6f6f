//! Port mapping: asks the router to lead a UDP port of its outside address to this node, by PCP (RFC 6887), NAT-PMP
//! (RFC 6886) or UPnP-IGD, so that peers reach it through any NAT.
//!
//! `policy` decides what to ask and when; `asking` asks, and trusts nobody but the default gateway's own address:
//! answers from elsewhere, addresses of other hosts in UPnP descriptions, and redirects are refused, and everything that
//! is read has a limit of size and time. What is refused or makes no sense is counted, and never costs more than a pause.
//!
//! A mapping lives for two hours or what the router grants, is renewed at half of that and when the host has slept, and
//! removed when the agent stops.
//! Which mapping is held, and the nonce that proves it to be one's own, is kept on disk: after a `kill -9` the next run
//! takes the same mapping over instead of making another one.
//!
//! Tasks: one, which owns the policy, the questions on their way and the listener for routers' announcements. It is stopped
//! between two events; then it removes the mapping, within a second. Dropping a question loses nothing.

mod announced;
mod asking;
mod epoch;
mod igd;
mod natpmp;
mod pcp;
mod policy;
mod router;
mod store;
mod task;
mod wire;

use std::{
    future::pending,
    net::{SocketAddr, SocketAddrV4},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use mesh_proto::{
    candidate::{Candidate, CandidateKind},
    status::PortMapping,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use router::is_private;

use crate::{identity::StateDir, os::HostNetworks};

/// Whether the router is asked at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// It is.
    #[default]
    On,
    /// Nothing is sent to it.
    Off,
}

/// A protocol by which routers are asked, the best first: PCP tells most, UPnP-IGD is the most code to trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// RFC 6887.
    Pcp,
    /// RFC 6886.
    NatPmp,
    /// UPnP Internet Gateway Device, version 1 or 2.
    Upnp,
}

/// A mapping that the router holds for this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapped {
    /// The protocol by which it was asked for.
    pub protocol: Protocol,
    /// Where peers reach this node.
    pub external: SocketAddrV4,
}

/// What is shown of port mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// The mapping, if there is one.
    pub mapped: Option<Mapped>,
    /// What routers did not do as they should.
    pub counts: Counts,
}

/// What routers did not do as they should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Questions that were refused.
    pub refused: u64,
    /// Answers that make no sense.
    pub garbage: u64,
}

/// Tells the task of networks, and hears of mappings.
#[derive(Debug, Clone)]
pub struct PortMapHandle {
    networks: Arc<watch::Sender<HostNetworks>>,
    /// For how long the host has slept, all in all.
    slept: Arc<watch::Sender<Duration>>,
    report: watch::Receiver<Report>,
}

/// Starts to keep a mapping of a UDP port, or does nothing if it is off.
pub fn spawn(
    mode: Mode,
    port: u16,
    state_dir: &StateDir,
    cancel: &CancellationToken,
    tracker: &TaskTracker,
) -> PortMapHandle {
    let (networks, changes) = watch::channel(HostNetworks::default());
    let (slept, wakes) = watch::channel(Duration::ZERO);
    let (reports, report) = watch::channel(Report::default());
    match mode {
        Mode::On => {
            let store = store::Store::load(state_dir);
            let inputs = task::Inputs { networks: changes, slept: wakes };
            tracker.spawn(task::run(port, store, inputs, reports, cancel.clone()));
        }
        Mode::Off => {}
    }
    PortMapHandle { networks: Arc::new(networks), slept: Arc::new(slept), report }
}

impl PortMapHandle {
    /// Tells that the host's networks have changed, or may have.
    pub fn set_networks(&self, networks: &HostNetworks) {
        self.networks.send_replace(networks.clone());
    }

    /// Tells that the host has slept for as long as its clock has not seen.
    pub fn woke(&self, unseen: Duration) {
        self.slept.send_modify(|slept| *slept += unseen);
    }

    /// Returns what is to be shown.
    #[must_use]
    pub fn report(&self) -> Report {
        *self.report.borrow()
    }

    /// Waits until there is something else to be shown. Cancel-safe; never, if port mapping is off.
    pub async fn changed(&mut self) {
        if self.report.changed().await.is_err() {
            pending::<()>().await;
        }
    }
}

impl Protocol {
    const ALL: [Self; 3] = [Self::Pcp, Self::NatPmp, Self::Upnp];
}

impl Mapped {
    /// Returns it as an address at which peers may reach this node.
    #[must_use]
    pub fn candidate(&self) -> Candidate {
        Candidate { address: SocketAddr::V4(self.external), kind: CandidateKind::PortMapped }
    }

    /// Whether the router is itself behind a NAT, so that only those beside it reach the mapping.
    #[must_use]
    pub fn is_behind_another_nat(&self) -> bool {
        router::is_private(*self.external.ip())
    }
}

impl From<Protocol> for PortMapping {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Pcp => Self::Pcp,
            Protocol::NatPmp => Self::NatPmp,
            Protocol::Upnp => Self::Upnp,
        }
    }
}

/// The text is neither `on` nor `off`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("port mapping is on or off")]
pub struct InvalidMode;

impl FromStr for Mode {
    type Err = InvalidMode;

    fn from_str(text: &str) -> Result<Self, InvalidMode> {
        match text {
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err(InvalidMode),
        }
    }
}
