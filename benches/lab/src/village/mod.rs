//! The village: the reference deployment that tests, demo and documentation share.
//!
//! | site | hosts | router | adds to a round trip |
//! |---|---|---|---|
//! | `pi` | `pi` | EIM x APDF, no hairpin, UDP and TCP 7443 forwarded | 8 ms |
//! | `country` | `country` | EIM x APDF | 35 ms |
//! | `office` | `office` | APDM x APDF | 12 ms |
//! | `home` | `home-a`, `home-b` | EIM x APDF, no hairpin | 8 ms |
//! | `lte` | `macbook` | carrier's NAT, EIM x EIF | 60 ms, each way 8 ms more or less |
//! | `cafe` | none: `macbook` roams here | EIM x ADF | 20 ms |
//!
//! The delay of a site is its share of any round trip: `home` to `country` takes 43 ms. `pi.duckdns.example` leads to
//! the public address of `pi`'s router; on `pi` itself, which cannot reach that address without hairpin, `/etc/hosts`
//! gives the LAN address instead, as people with such routers have it.

use std::net::Ipv4Addr;
use std::ops::Deref;
use std::time::Duration;

use ipnet::Ipv4Net;

use crate::mesh::{Mesh, MeshOptions};
use crate::nat::{Filtering, Mapping, Nat, Protocol};
use crate::run::Lab;
use crate::topology::{Site, Topology};

pub mod control;
pub mod roaming;
pub mod state;
pub mod supervisor;

/// The name by which the coordinator is found.
pub const COORDINATOR_NAME: &str = "pi.duckdns.example";
/// The host of the coordinator.
pub const COORDINATOR_HOST: &str = "pi";
/// All nodes.
pub const NODES: [&str; 6] = ["pi", "country", "office", "home-a", "home-b", "macbook"];
/// The port that the router of `pi` forwards, UDP and TCP.
const PORT: u16 = 7443;

/// A running village; a [`Mesh`] with the parts that only the village has.
#[derive(Debug)]
pub struct Village {
    mesh: Mesh,
}

impl Village {
    /// Builds the network and prepares the mesh; no process is started.
    ///
    /// # Errors
    ///
    /// If the network cannot be built or the binaries are missing.
    pub fn prepare(lab: &Lab) -> anyhow::Result<Self> {
        Self::prepare_with(lab, MeshOptions::new(COORDINATOR_HOST, COORDINATOR_NAME, &NODES))
    }

    /// As [`Village::prepare`], with other options of the mesh.
    ///
    /// # Errors
    ///
    /// As [`Village::prepare`].
    pub fn prepare_with(lab: &Lab, options: MeshOptions) -> anyhow::Result<Self> {
        Self::prepare_on(lab, topology(), options)
    }

    /// As [`Village::prepare_with`], on a network that has more than the village's [`topology`].
    ///
    /// # Errors
    ///
    /// As [`Village::prepare`].
    pub fn prepare_on(lab: &Lab, topology: Topology, options: MeshOptions) -> anyhow::Result<Self> {
        let network = lab.build(topology)?;
        network.dns().set(COORDINATOR_NAME, &[network.outside("pi")?.into()]);
        let pi = network.host(COORDINATOR_HOST)?;
        pi.set_hosts_entry(COORDINATOR_NAME, Some(pi.address().into()))?;
        Ok(Self { mesh: Mesh::new(network, &options)? })
    }

    /// Builds the network, starts the coordinator, joins all six nodes and waits until they are ready.
    ///
    /// # Errors
    ///
    /// If any of it fails.
    pub fn start(lab: &Lab) -> anyhow::Result<Self> {
        let village = Self::prepare(lab)?;
        village.mesh.start()?;
        Ok(village)
    }

    /// As [`Village::start`], without efforts at hard pairs of NATs: `office` stays relayed.
    ///
    /// # Errors
    ///
    /// If any of it fails.
    pub fn start_relayed(lab: &Lab) -> anyhow::Result<Self> {
        let mut options = MeshOptions::new(COORDINATOR_HOST, COORDINATOR_NAME, &NODES);
        options.agent_args = ["--punch-rate", "0"].map(str::to_owned).to_vec();
        let village = Self::prepare_with(lab, options)?;
        village.mesh.start()?;
        Ok(village)
    }

    /// The mesh.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Gives `pi`'s home another public address, and lets the DuckDNS name follow.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the address.
    pub fn move_home(&self, outside: Ipv4Addr) -> anyhow::Result<()> {
        let network = self.mesh.network();
        network.set_outside("pi", outside)?;
        network.dns().set(COORDINATOR_NAME, &[outside.into()]);
        Ok(())
    }
}

impl Deref for Village {
    type Target = Mesh;

    fn deref(&self) -> &Mesh {
        &self.mesh
    }
}

impl Lab {
    /// Starts the village: see [`Village::start`].
    ///
    /// # Errors
    ///
    /// As [`Village::start`].
    pub fn village(&self) -> anyhow::Result<Village> {
        Village::start(self)
    }
}

/// The network of the village.
pub fn topology() -> Topology {
    let millis = Duration::from_millis;
    let lan = |a, b, c| Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), 24);
    let home_nat = || Nat::new(Mapping::Eim, Filtering::Apdf);
    let pi = home_nat().forward(Protocol::Udp, PORT, "pi").forward(Protocol::Tcp, PORT, "pi");
    Topology::new()
        .site(
            Site::behind("pi", pi)
                .host("pi")
                .latency(millis(8))
                .outside(Ipv4Addr::new(203, 0, 113, 10))
                .inside(lan(192, 168, 1)),
        )
        .site(
            Site::behind("country", home_nat())
                .host("country")
                .latency(millis(35))
                .outside(Ipv4Addr::new(198, 51, 100, 20))
                .inside(lan(192, 168, 2)),
        )
        .site(
            Site::behind("office", Nat::new(Mapping::Apdm, Filtering::Apdf))
                .host("office")
                .latency(millis(12))
                .outside(Ipv4Addr::new(198, 51, 100, 30))
                .inside(lan(10, 20, 0)),
        )
        .site(
            Site::behind("home", home_nat())
                .host("home-a")
                .host("home-b")
                .latency(millis(8))
                .outside(Ipv4Addr::new(203, 0, 113, 40))
                .inside(lan(192, 168, 178)),
        )
        .site(
            Site::behind("lte", Nat::new(Mapping::Eim, Filtering::Eif))
                .host("macbook")
                .latency(millis(60))
                .jitter(millis(8))
                .outside(Ipv4Addr::new(198, 51, 100, 50))
                .inside(lan(100, 64, 7)),
        )
        .site(
            Site::behind("cafe", Nat::new(Mapping::Eim, Filtering::Adf))
                .latency(millis(20))
                .outside(Ipv4Addr::new(198, 51, 100, 60))
                .inside(lan(10, 0, 60)),
        )
}
