//! What a script needs of a mesh, ours or another.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use mesh_lab::mesh::{Daemon, wait_until};
use mesh_lab::topology::Reach;
use mesh_lab::{Mesh, Network};

/// How long a mesh may take to be quiet again after a trial.
const SETTLE_PATIENCE: Duration = Duration::from_secs(90);
/// A path that has answered within this time is in use.
const FRESH: Duration = Duration::from_millis(1500);
/// How often agents are asked for their paths: what directness is measured by.
const POLL: Duration = Duration::from_millis(10);
/// How long directness is waited for.
const DIRECT_PATIENCE: Duration = Duration::from_secs(20);

/// A mesh over a network.
pub(super) trait Overlay {
    /// The network below.
    fn network(&self) -> &Network;

    /// The UDP port of every node.
    fn port(&self) -> u16;

    /// The address of a host in the mesh.
    fn address(&self, host: &str) -> anyhow::Result<IpAddr>;

    /// Waits until a pair is as it should be, after what was done to it.
    fn settle(&self, pair: [&str; 2]) -> anyhow::Result<()>;

    /// Its daemons whose logs say what they did, if there are such.
    fn daemons(&self) -> Vec<&Daemon>;

    /// What is known of the paths of a pair, to see them change, if the mesh tells.
    fn look(&self, pair: [&str; 2]) -> Option<Before>;

    /// Waits until both ends send to each other directly, where nothing is left of `before`, and returns how long after
    /// `since` that was so.
    fn wait_direct(&self, pair: [&str; 2], before: &Before, since: (Instant, SystemTime))
    -> Option<Duration>;
}

/// The paths of a pair before something happens.
#[derive(Debug, Clone)]
pub(super) struct Before {
    /// Whose path leads elsewhere afterwards: the end that stays.
    stays: Option<(usize, String)>,
}

impl Before {
    /// What the end of a pair that stays knows of the one that moves.
    pub(super) fn of(mesh: &Mesh, pair: [&str; 2], moves: &str) -> Option<Self> {
        let stays = pair.iter().position(|end| *end != moves)?;
        let path = mesh.node(pair[stays]).ok()?.primary(moves).ok()??;
        Some(Self { stays: Some((stays, path.path)) })
    }
}

impl Overlay for mesh_lab::Village {
    fn network(&self) -> &Network {
        self.mesh().network()
    }

    fn port(&self) -> u16 {
        mesh_proto::DEFAULT_AGENT_PORT
    }

    fn address(&self, host: &str) -> anyhow::Result<IpAddr> {
        Ok(self.node(host)?.address()?.into())
    }

    fn settle(&self, pair: [&str; 2]) -> anyhow::Result<()> {
        settle(self, pair)
    }

    fn daemons(&self) -> Vec<&Daemon> {
        self.mesh().daemons()
    }

    fn look(&self, pair: [&str; 2]) -> Option<Before> {
        Before::of(self, pair, "macbook")
    }

    fn wait_direct(
        &self,
        pair: [&str; 2],
        before: &Before,
        since: (Instant, SystemTime),
    ) -> Option<Duration> {
        wait_direct(self, pair, before, since)
    }
}

/// Waits until both ends of a pair have the path that their NATs allow, and it answers.
pub(super) fn settle(mesh: &Mesh, pair: [&str; 2]) -> anyhow::Result<()> {
    let [a, b] = pair;
    let is_easy = matches!(mesh.network().reach(a, b)?, Reach::Lan | Reach::Direct);
    wait_until(SETTLE_PATIENCE, &format!("{a} and {b} are quiet again"), || {
        for (from, to) in [(a, b), (b, a)] {
            let path = mesh.node(from)?.primary(to)?.context("no path")?;
            let is_fresh = path.answered.is_some_and(|at| at.elapsed().is_ok_and(|ago| ago < FRESH));
            anyhow::ensure!(is_fresh && (path.is_direct() || !is_easy), "{from} says {path:?}");
        }
        Ok(true)
    })
}

fn wait_direct(
    mesh: &Mesh,
    pair: [&str; 2],
    before: &Before,
    (since, wall): (Instant, SystemTime),
) -> Option<Duration> {
    let is_direct = |end: usize| -> Option<bool> {
        let path = mesh.node(pair[end]).ok()?.primary(pair[1 - end]).ok()??;
        let is_old = before.stays.as_ref().is_some_and(|(stays, known)| *stays == end && *known == path.path);
        Some(path.is_direct() && !is_old && path.answered.is_some_and(|at| at > wall))
    };
    while since.elapsed() < DIRECT_PATIENCE {
        if (0..2).all(|end| is_direct(end) == Some(true)) {
            return Some(since.elapsed());
        }
        std::thread::sleep(POLL);
    }
    eprintln!("  {} and {} are not direct again", pair[0], pair[1]);
    None
}
