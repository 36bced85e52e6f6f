//! Makes the host and the engine look as planned, and keeps them so.
//!
//! [`Reconciler::apply`] takes the whole desired state and is idempotent: applied twice, the second time does
//! nothing; applied to a host that somebody else has changed, it puts back what is missing. The order never lets
//! a packet in or out that the plan does not allow:
//!
//! ```text
//! link up -> routes that go -> peers (with their filter) -> addresses -> routes that come
//! ```
//!
//! A route is there only while the engine knows whose it is, and what is left out of the plan loses its route before
//! its peer.

mod drift;

use std::{collections::BTreeSet, future::Future};

use ipnet::IpNet;
use mesh_engine::{command::Command, config::PeerConfig};

pub use drift::{Attitude, Patience, PutBack};

use crate::{
    driver::EngineHandle,
    io::tun::Tun,
    os::{Change, Host, LinkChange},
    plan::Desired,
};

/// The engine's side of a plan.
pub trait Peers: Send + Sync + 'static {
    /// Sets the peers, all of them.
    ///
    /// # Errors
    /// When the engine has ended.
    fn set_peers(&self, peers: Vec<PeerConfig>) -> impl Future<Output = anyhow::Result<()>> + Send;
}

impl<T: Tun> Peers for EngineHandle<T> {
    async fn set_peers(&self, peers: Vec<PeerConfig>) -> anyhow::Result<()> {
        self.command(Command::SetPeers(peers)).await
    }
}

/// Applies plans to one host and one engine.
pub struct Reconciler<H, P> {
    host: H,
    peers: P,
    mtu: u16,
    /// What the engine was told last.
    told: Option<Vec<PeerConfig>>,
    /// The routes that were asked for last; `None` before the first plan, when a predecessor's may be there.
    routes: Option<BTreeSet<IpNet>>,
    /// The ranges of the last plan.
    ranges: Vec<IpNet>,
}

/// What applying a plan had to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// What of the link was set.
    pub link: LinkChange,
    /// How many addresses were set or removed.
    pub addresses: usize,
    /// How many routes were set or removed.
    pub routes: usize,
    /// Prefixes that the system did not take, with its reason: a clause for people.
    pub refused: Vec<(IpNet, String)>,
}

impl<H: Host, P: Peers> Reconciler<H, P> {
    /// Makes a reconciler; nothing is changed yet.
    pub fn new(host: H, peers: P, mtu: u16) -> Self {
        Self { host, peers, mtu, told: None, routes: None, ranges: Vec::new() }
    }

    /// Returns the host.
    pub fn host(&self) -> &H {
        &self.host
    }

    /// Makes everything look as planned.
    ///
    /// # Errors
    /// When the interface is gone, the system refuses, or the engine has ended. What was done stays done; applying
    /// again goes on from there.
    pub async fn apply(&mut self, desired: &Desired) -> anyhow::Result<Applied> {
        let mut applied = Applied { link: self.host.set_link(self.mtu).await?, ..Applied::default() };
        self.ranges.clone_from(&desired.ranges);
        // What a predecessor left at an interface that was kept stays until the peers are known: it is mostly the same.
        if let Some(routes) = &self.routes {
            let staying: BTreeSet<_> = routes.intersection(&desired.routes).copied().collect();
            if *routes != staying {
                let gone = self.host.set_routes(&staying).await?;
                applied.routes += applied.note(gone);
                self.routes = Some(staying);
            }
        }
        if self.told.as_ref() != Some(&desired.peers) {
            self.peers.set_peers(desired.peers.clone()).await?;
            self.told = Some(desired.peers.clone());
        }
        let addresses = desired.addresses.iter().copied().collect();
        let addresses = self.host.set_addresses(&addresses, &desired.ranges).await?;
        applied.addresses = applied.note(addresses);
        let routes = self.host.set_routes(&desired.routes).await?;
        self.routes = Some(desired.routes.clone());
        applied.routes += applied.note(routes);
        Ok(applied)
    }

    /// Takes back everything, in reverse.
    ///
    /// # Errors
    /// When the interface is gone, or the system refuses.
    pub async fn clear(&mut self) -> anyhow::Result<()> {
        self.host.set_routes(&BTreeSet::new()).await?;
        self.routes = Some(BTreeSet::new());
        self.peers.set_peers(Vec::new()).await?;
        self.told = Some(Vec::new());
        self.host.set_addresses(&BTreeSet::new(), &self.ranges).await?;
        Ok(())
    }
}

impl Applied {
    /// Keeps what was refused, and returns how many changed.
    fn note(&mut self, change: Change) -> usize {
        self.refused.extend(change.refused);
        change.added + change.removed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use mesh_proto::{key::PublicKey, netmap::NodeId};

    use super::*;
    use crate::os::HostNetworks;

    /// A host and an engine that keep what they are told, and note what changes.
    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<World>>);

    #[derive(Default)]
    struct World {
        addresses: BTreeSet<IpNet>,
        routes: BTreeSet<IpNet>,
        log: Vec<String>,
        gone: bool,
    }

    impl Fake {
        fn take_log(&self) -> Vec<String> {
            std::mem::take(&mut self.0.lock().unwrap().log)
        }

        fn set(&self, what: &str, wanted: &BTreeSet<IpNet>) -> Change {
            let mut world = self.0.lock().unwrap();
            let World { addresses, routes, log, .. } = &mut *world;
            let held = if what == "routes" { routes } else { addresses };
            let change = Change {
                added: wanted.difference(held).count(),
                removed: held.difference(wanted).count(),
                refused: vec![],
            };
            log.extend(wanted.difference(held).map(|net| format!("{what} + {net}")));
            log.extend(held.difference(wanted).map(|net| format!("{what} - {net}")));
            held.clone_from(wanted);
            change
        }
    }

    impl Host for Fake {
        async fn set_link(&self, _mtu: u16) -> anyhow::Result<LinkChange> {
            anyhow::ensure!(!self.0.lock().unwrap().gone, "gone");
            Ok(LinkChange::default())
        }

        async fn set_addresses(
            &self,
            addresses: &BTreeSet<IpNet>,
            _ranges: &[IpNet],
        ) -> anyhow::Result<Change> {
            Ok(self.set("addresses", addresses))
        }

        async fn set_routes(&self, routes: &BTreeSet<IpNet>) -> anyhow::Result<Change> {
            Ok(self.set("routes", routes))
        }

        async fn networks(&self) -> anyhow::Result<HostNetworks> {
            Ok(HostNetworks::default())
        }
    }

    impl Peers for Fake {
        async fn set_peers(&self, peers: Vec<PeerConfig>) -> anyhow::Result<()> {
            let ids: Vec<_> = peers.iter().map(|peer| peer.id.0).collect();
            self.0.lock().unwrap().log.push(format!("peers {ids:?}"));
            Ok(())
        }
    }

    fn desired(peers: &[u32], routes: &[&str]) -> Desired {
        let peer = |id: &u32| PeerConfig {
            id: NodeId(*id),
            public_key: PublicKey([u8::try_from(*id).unwrap(); 32]),
            allowed_ips: vec![],
        };
        Desired {
            addresses: vec!["10.90.0.1/32".parse().unwrap()],
            ranges: vec!["10.90.0.0/16".parse().unwrap()],
            peers: peers.iter().map(peer).collect(),
            routes: routes.iter().map(|route| route.parse().unwrap()).collect(),
            warnings: vec![],
        }
    }

    fn reconciler(fake: &Fake) -> Reconciler<Fake, Fake> {
        Reconciler::new(fake.clone(), fake.clone(), 1280)
    }

    #[tokio::test]
    async fn peers_come_before_their_routes_and_go_after_them() {
        let fake = Fake::default();
        let mut reconciler = reconciler(&fake);
        reconciler.apply(&desired(&[1, 2], &["10.1.0.0/16", "10.2.0.0/16"])).await.unwrap();
        assert_eq!(
            fake.take_log(),
            ["peers [1, 2]", "addresses + 10.90.0.1/32", "routes + 10.1.0.0/16", "routes + 10.2.0.0/16"]
        );
        reconciler.apply(&desired(&[2, 3], &["10.2.0.0/16", "10.3.0.0/16"])).await.unwrap();
        assert_eq!(fake.take_log(), ["routes - 10.1.0.0/16", "peers [2, 3]", "routes + 10.3.0.0/16"]);
        reconciler.clear().await.unwrap();
        assert_eq!(
            fake.take_log(),
            ["routes - 10.2.0.0/16", "routes - 10.3.0.0/16", "peers []", "addresses - 10.90.0.1/32"]
        );
    }

    #[tokio::test]
    async fn the_second_time_does_nothing() {
        let fake = Fake::default();
        let mut reconciler = reconciler(&fake);
        let desired = desired(&[1], &["10.1.0.0/16"]);
        let applied = reconciler.apply(&desired).await.unwrap();
        assert_eq!((applied.addresses, applied.routes), (1, 1));
        fake.take_log();
        assert_eq!(reconciler.apply(&desired).await.unwrap(), Applied::default());
        assert!(fake.take_log().is_empty());
    }

    #[tokio::test]
    async fn what_others_took_away_is_put_back() {
        let fake = Fake::default();
        let mut reconciler = reconciler(&fake);
        let desired = desired(&[1], &["10.1.0.0/16"]);
        reconciler.apply(&desired).await.unwrap();
        fake.0.lock().unwrap().routes.clear();
        fake.0.lock().unwrap().addresses.insert("10.90.0.77/32".parse().unwrap());
        fake.take_log();
        reconciler.apply(&desired).await.unwrap();
        assert_eq!(fake.take_log(), ["addresses - 10.90.0.77/32", "routes + 10.1.0.0/16"]);
    }

    #[tokio::test]
    async fn of_what_a_predecessor_left_only_what_is_not_wanted_goes() {
        let fake = Fake::default();
        let left: [IpNet; 2] = ["10.1.0.0/16", "10.9.0.0/16"].map(|route| route.parse().unwrap());
        fake.0.lock().unwrap().routes.extend(left);
        reconciler(&fake).apply(&desired(&[1], &["10.1.0.0/16"])).await.unwrap();
        assert_eq!(fake.take_log(), ["peers [1]", "addresses + 10.90.0.1/32", "routes - 10.9.0.0/16"]);
    }

    #[tokio::test]
    async fn an_interface_that_is_gone_is_an_error_and_changes_nothing() {
        let fake = Fake::default();
        fake.0.lock().unwrap().gone = true;
        assert!(reconciler(&fake).apply(&desired(&[1], &["10.1.0.0/16"])).await.is_err());
        assert!(fake.take_log().is_empty());
    }
}
