//! A coordinator far away, relays at other distances, and nodes behind NATs that nothing gets through.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use mesh_lab::mesh::wait_until;
use mesh_lab::traffic::Echo;
use mesh_lab::{Filtering, Lab, Mapping, Mesh, MeshOptions, Nat, Network, Site, Topology};
use mesh_proto::status::PathKind;

/// Far beyond what is promised: the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Between the requests of a pair.
pub(crate) const INTERVAL: Duration = Duration::from_millis(20);

/// The coordinator's host, with its relay, which is called so, too.
pub(crate) const COORDINATOR: &str = "pi";
/// By which nodes find it.
pub(crate) const NAME: &str = "pi.example";
/// The relay that is nearest to every node.
pub(crate) const NEAR: &str = "near";
/// The next one.
pub(crate) const FARTHER: &str = "farther";

/// A NAT that nothing gets through from another one of its kind.
pub(crate) fn hard() -> Nat {
    Nat::new(Mapping::Apdm, Filtering::Apdf)
}

/// Two nodes behind symmetric NATs that filter by port, and three places for relays.
pub(crate) fn topology() -> Topology {
    let ms = Duration::from_millis;
    Topology::new()
        .site(Site::public(COORDINATOR).latency(ms(80)))
        .site(Site::public(NEAR).latency(ms(5)))
        .site(Site::public(FARTHER).latency(ms(40)))
        .site(Site::behind("company", hard()).host("office").latency(ms(10)))
        .site(Site::behind("house", hard()).host("home").latency(ms(10)))
}

pub(crate) fn build(lab: &Lab, topology: Topology) -> anyhow::Result<Arc<Network>> {
    let network = Arc::new(lab.build(topology)?);
    network.dns().set(NAME, &[network.host(COORDINATOR)?.address().into()]);
    Ok(network)
}

/// A mesh of `office` and `home` that is up.
pub(crate) fn start(network: &Arc<Network>) -> anyhow::Result<Mesh> {
    let options = MeshOptions::new(COORDINATOR, NAME, &["office", "home"]);
    let mesh = Mesh::new(Arc::clone(network), &options)?;
    mesh.start()?;
    Ok(mesh)
}

/// Waits until both nodes say that they reach each other through this relay.
pub(crate) fn wait_through(mesh: &Mesh, relay: &str) -> anyhow::Result<()> {
    wait_until(PATIENCE, &format!("the pair goes through {relay}"), || {
        for (node, peer) in [("office", "home"), ("home", "office")] {
            let path = mesh.node(node)?.peer(peer)?.path;
            let is = path.kind == PathKind::Relay && path.relay.as_deref() == Some(relay);
            ensure!(is, "{node} says {path:?}");
        }
        Ok(true)
    })
}

/// Lets something happen under traffic, and returns the longest time without a reply of either side.
pub(crate) fn gap(
    echo: &Echo,
    mesh: &Mesh,
    happen: impl FnOnce() -> anyhow::Result<()>,
    then_through: &str,
) -> anyhow::Result<Duration> {
    echo.forget();
    happen()?;
    let happened = std::time::Instant::now();
    echo.wait_all(happened, PATIENCE)?;
    wait_through(mesh, then_through)?;
    std::thread::sleep(Duration::from_secs(1));
    let gaps = echo.flows().into_iter().map(|flow| flow.longest_gap);
    Ok(gaps.max().unwrap_or_default())
}
