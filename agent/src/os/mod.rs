//! What the agent asks of the operating system: links, addresses, routes, and news of their changes.
//!
//! Everything that is set is the whole desired state of this agent's own interface, and setting it twice is
//! setting it once. Nothing of others is ever changed: only addresses on the own interface that lie in the mesh's
//! ranges, and only routes that carry the agent's own routing-protocol number *and* lead into the own interface. What a
//! person adds to the interface beside that, another address or a route, stays. Several agents on one host differ in
//! their interface, so they do not touch each other's.

mod burst;
pub mod clocks;
mod networks;

#[cfg(target_os = "linux")]
pub mod linux;
#[cfg(any(target_os = "macos", test))]
pub mod macos;

use std::{collections::BTreeSet, future::Future};

use ipnet::IpNet;

pub use networks::{DefaultRoute, Family, HostInterface, HostNetworks, NetworkId, is_underlay};

/// The operating system's side of the agent's interface.
pub trait Host: Send + Sync + 'static {
    /// Brings the interface up with an MTU, and tells what had to change.
    ///
    /// # Errors
    /// When the interface is not there, or the system refuses.
    fn set_link(&self, mtu: u16) -> impl Future<Output = anyhow::Result<LinkChange>> + Send;

    /// Gives the interface exactly these addresses in these ranges, and tells how many had to change.
    ///
    /// # Errors
    /// When the interface is not there, or the system refuses.
    fn set_addresses(
        &self,
        addresses: &BTreeSet<IpNet>,
        ranges: &[IpNet],
    ) -> impl Future<Output = anyhow::Result<Change>> + Send;

    /// Leads exactly these prefixes into the interface, and tells how many had to change.
    ///
    /// # Errors
    /// When the interface is not there, or the system refuses.
    fn set_routes(&self, routes: &BTreeSet<IpNet>) -> impl Future<Output = anyhow::Result<Change>> + Send;

    /// Returns the host's other interfaces and default routes.
    ///
    /// # Errors
    /// When the system does not tell.
    fn networks(&self) -> impl Future<Output = anyhow::Result<HostNetworks>> + Send;
}

/// What setting a link had to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkChange {
    /// It was down.
    pub was_down: bool,
    /// It had another MTU.
    pub mtu_differed: bool,
}

/// What setting a whole state had to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Change {
    /// Entries that were missing.
    pub added: usize,
    /// Entries that were too many.
    pub removed: usize,
    /// Entries that the system did not take, with its reason: a clause for people.
    pub refused: Vec<(IpNet, String)>,
}
