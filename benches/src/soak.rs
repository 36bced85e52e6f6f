//! `make bench-soak`: minutes of mixed load, in which nothing may grow.
//!
//! Two nodes on one LAN and a third behind a NAT that lets nothing direct through, so that its traffic is relayed. At
//! the same time, until the time is over:
//!
//! - streams, floods, small datagrams, echoes and silence between the two, in turns, by iperf3 and ping;
//! - files between them and the third, through the relay, each on a connection of its own, whole or the bench fails;
//! - questions of an operator to every agent.
//!
//! Every daemon's memory and descriptors are noted all the while. What it has in the last quarter of the time is held
//! against the second: in the first, buffers and caches are still filled.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use mesh_lab::{
    Filtering, Host, Lab, Mapping, Mesh, MeshOptions, Nat, Node, Site, Topology, mesh::wait_until,
    traffic::transfer,
};
use mesh_proto::status::PathKind;
use serde::Serialize;

use crate::{
    agent::PATIENCE,
    figure::{Budget, Figure},
    procfs,
    wire::Load,
};

/// How long each load runs, in seconds.
const TURN: u32 = 5;
/// Bytes of a file that goes through the relay.
const FILE: u64 = 5_000_000;
/// Between two files, and between two questions.
const PAUSE: Duration = Duration::from_secs(1);
/// How often daemons are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How much more memory a daemon may have at the end, in MB: what the system's allocator gives back late.
const MEMORY_GROWTH: f64 = 1.0;

/// What was seen of one daemon.
#[derive(Debug, Clone, Serialize)]
pub struct Watched {
    /// The daemon.
    pub name: String,
    /// Resident memory at each look, in MB.
    pub resident: Vec<f64>,
    /// Open descriptors at each look.
    pub descriptors: Vec<f64>,
    #[serde(skip)]
    pid: i32,
}

/// What was seen of all.
#[derive(Debug, Clone, Serialize)]
pub struct Soaked {
    /// The daemons.
    pub daemons: Vec<Watched>,
    /// Loads that were run.
    pub loads: usize,
    /// Files that went through the relay, whole.
    pub files: usize,
    /// Questions that were answered.
    pub answers: usize,
}

/// Runs it for so long.
///
/// # Errors
/// When the lab, the binaries or a load fail, a file does not arrive whole, or a daemon ends.
pub fn run(lab: &Lab, time: Duration) -> anyhow::Result<Soaked> {
    let hard = || Nat::new(Mapping::Apdm, Filtering::Apdf);
    let near = Site::behind("near", hard()).host("a").host("b");
    let far = Site::behind("far", hard()).host("c");
    let network = lab.build(Topology::new().site(Site::public("coord")).site(near).site(far))?;
    let address = network.outside("coord")?.to_string();
    let mesh = Mesh::new(network, &MeshOptions::new("coord", &address, &["a", "b", "c"]))?;
    mesh.start()?;
    mesh.wait_connected(PATIENCE)?;
    wait_until(PATIENCE, "a and b talk directly", || {
        mesh.ping("a", "b")?;
        Ok(mesh.node("a")?.peer("b")?.path.kind == PathKind::Direct)
    })?;
    let [a, b, c] = [mesh.node("a")?, mesh.node("b")?, mesh.node("c")?];
    let server = b.host().command("iperf3").args(["-s", "--forceflush"]).spawn("iperf3")?;
    let deadline = Instant::now() + time;
    let is_over = AtomicBool::new(false);
    let is_over = &is_over;
    let mut soaked = Soaked { daemons: watched(&mesh)?, loads: 0, files: 0, answers: 0 };
    let daemons = &mut soaked.daemons;
    let [loads, files, answers] = std::thread::scope(|scope| {
        let loads = scope.spawn(|| until(is_over, |turn| load(a.host(), b, turn)));
        let files = scope.spawn(|| until(is_over, |turn| file(if turn % 2 == 0 { a } else { b }, c, turn)));
        let answers = scope.spawn(|| until(is_over, |_| ask(&[a, b, c])));
        let all = [loads, files, answers];
        let mut looked = Ok(());
        while looked.is_ok() && Instant::now() < deadline && all.iter().all(|one| !one.is_finished()) {
            std::thread::sleep(LOOK);
            looked = daemons.iter_mut().try_for_each(Watched::look);
        }
        is_over.store(true, Ordering::Relaxed);
        let joined = all.map(|one| one.join().map_err(|_| anyhow::anyhow!("a load panicked"))?);
        let [loads, files, answers] = joined;
        looked?;
        anyhow::Ok([loads?, files?, answers?])
    })?;
    ensure!(c.peer("a")?.path.kind == PathKind::Relay, "c was to be relayed");
    drop(server);
    mesh.stop()?;
    Ok(Soaked { loads, files, answers, ..soaked })
}

impl Soaked {
    /// Returns by how much each daemon has grown.
    ///
    /// # Errors
    /// When the time was too short for that.
    pub fn figures(&self) -> anyhow::Result<Vec<Figure>> {
        let mut figures = Vec::new();
        for daemon in &self.daemons {
            let Watched { name, resident, descriptors, .. } = daemon;
            let most = resident.iter().copied().fold(0.0, f64::max);
            figures.push(Figure::new(format!("{name}: most resident"), "MB", vec![most], None)?);
            let memory = growth(resident, mean).context("too few looks")?;
            let budget = Some(Budget::AtMost(MEMORY_GROWTH));
            figures.push(Figure::new(format!("{name}: more resident"), "MB", vec![memory], budget)?);
            // The least: connections come and go, what leaks stays.
            let files = growth(descriptors, |part| part.iter().copied().fold(f64::MAX, f64::min));
            let files = files.context("too few looks")?;
            let budget = Some(Budget::AtMost(0.0));
            figures.push(Figure::new(format!("{name}: more descriptors"), "", vec![files], budget)?);
        }
        Ok(figures)
    }

    /// Writes all that was seen, look by look.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_json(&self, path: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(path.parent().context("the file is in a folder")?)?;
        std::fs::write(path, serde_json::to_vec(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Watched {
    fn look(&mut self) -> anyhow::Result<()> {
        let resident = procfs::resident_mb(self.pid).with_context(|| format!("{} is gone", self.name))?;
        self.resident.push(resident);
        self.descriptors.push(std::fs::read_dir(format!("/proc/{}/fd", self.pid))?.count() as f64);
        Ok(())
    }
}

fn watched(mesh: &Mesh) -> anyhow::Result<Vec<Watched>> {
    let watched = |daemon: &mesh_lab::mesh::Daemon| {
        let pid = daemon.pid().context("it runs")?;
        Ok(Watched { name: daemon.name().to_owned(), resident: Vec::new(), descriptors: Vec::new(), pid })
    };
    mesh.daemons().into_iter().map(watched).collect()
}

/// Does something again and again; returns how often.
fn until(is_over: &AtomicBool, mut work: impl FnMut(usize) -> anyhow::Result<()>) -> anyhow::Result<usize> {
    let mut turn = 0;
    while !is_over.load(Ordering::Relaxed) {
        work(turn)?;
        turn += 1;
    }
    Ok(turn)
}

/// Puts one load on the direct path, or none.
fn load(from: &Host, to: &Node, turn: usize) -> anyhow::Result<()> {
    let address = to.address()?.into();
    match Load::ALL.get(turn % (Load::ALL.len() + 1)) {
        Some(load) => drop(load.run(from, address, TURN).with_context(|| load.name())?),
        None => std::thread::sleep(Duration::from_secs(TURN.into())),
    }
    Ok(())
}

/// Sends a file through the relay, there or back.
fn file(near: &Node, far: &Node, turn: usize) -> anyhow::Result<()> {
    let (from, to) = if turn.is_multiple_of(3) { (far, near) } else { (near, far) };
    let sent = transfer(from.host(), (to.host(), to.address()?), FILE).context("a file through the relay")?;
    ensure!(sent.sent == sent.received, "a file arrives as another");
    std::thread::sleep(PAUSE);
    Ok(())
}

fn ask(nodes: &[&Node]) -> anyhow::Result<()> {
    nodes.iter().try_for_each(|node| node.status().map(drop))?;
    std::thread::sleep(PAUSE);
    Ok(())
}

/// By how much the last quarter is above the second.
fn growth(values: &[f64], of: impl Fn(&[f64]) -> f64) -> Option<f64> {
    let quarter = values.len() / 4;
    let second = values.get(quarter..2 * quarter).filter(|part| !part.is_empty())?;
    let last = values.get(3 * quarter..)?;
    Some(of(last) - of(second))
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_of_the_last_quarter_over_the_second() {
        assert_eq!(growth(&[1.0, 5.0, 9.0, 7.0], mean), Some(2.0));
        assert_eq!(growth(&[0.0, 0.0, 4.0, 6.0, 9.0, 9.0, 1.0, 3.0], mean), Some(-3.0));
        assert_eq!(growth(&[1.0, 2.0, 3.0], mean), None);
    }

    #[test]
    fn a_daemon_that_grows_is_told() {
        let resident: Vec<f64> = (0..100).map(f64::from).collect();
        let descriptors = (0..100).map(|look| 9.0 + f64::from(look % 7)).collect();
        let daemon = Watched { name: "a".into(), resident, descriptors, pid: 1 };
        let soaked = Soaked { daemons: vec![daemon], loads: 1, files: 1, answers: 1 };
        let kept: Vec<_> = soaked.figures().unwrap().iter().map(|figure| figure.kept).collect();
        assert_eq!(kept, [None, Some(false), Some(true)]);
    }
}
