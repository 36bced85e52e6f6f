//! A mesh of `a` and `b`, and what its paths are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use mesh_lab::mesh::wait_until;
use mesh_lab::traffic::Echo;
use mesh_lab::{Mesh, MeshOptions, Network};
use mesh_proto::status::{PathKind, PathStatus};

pub(crate) const COORDINATOR: &str = "coordinator";
/// What each site adds to a round trip.
pub(crate) const LATENCY: Duration = Duration::from_millis(20);
/// Far beyond the budgets, which are printed and not asserted: the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Between the requests of a pair.
const INTERVAL: Duration = Duration::from_millis(100);

/// Agents on `a` and `b`, and a coordinator that is found as `name`; nothing is started.
pub(crate) fn prepare(network: &Arc<Network>, name: &str, agent_args: &[&str]) -> anyhow::Result<Mesh> {
    let mut options = MeshOptions::new(COORDINATOR, name, &["a", "b"]);
    options.agent_args = agent_args.iter().map(|&arg| arg.to_owned()).collect();
    Mesh::new(Arc::clone(network), &options)
}

/// The paths of both sides.
pub(crate) fn paths(mesh: &Mesh) -> anyhow::Result<[PathStatus; 2]> {
    Ok([mesh.node("a")?.peer("b")?.path, mesh.node("b")?.peer("a")?.path])
}

/// Has `a` ask `b` until both sides are direct and `is_right`; returns the paths and how long that took.
pub(crate) fn wait_direct(
    mesh: &Mesh,
    is_right: impl Fn(&[PathStatus; 2]) -> bool,
) -> anyhow::Result<([PathStatus; 2], Duration)> {
    let start = Instant::now();
    let echo = Echo::start(mesh, INTERVAL, |from, _| from == "a")?;
    let mut last = None;
    wait_until(PATIENCE, "both sides are direct", || {
        let both = paths(mesh)?;
        ensure!(both.iter().all(|path| path.kind == PathKind::Direct) && is_right(&both), "{both:?}");
        last = Some(both);
        Ok(true)
    })?;
    let took = start.elapsed();
    echo.wait_first(PATIENCE)?;
    Ok((last.expect("looked at least once"), took))
}

/// Whether both sides' paths lead over IPv6.
pub(crate) fn over_ipv6(paths: &[PathStatus; 2]) -> bool {
    paths.iter().all(|path| path.address.is_some_and(|address| address.is_ipv6()))
}
