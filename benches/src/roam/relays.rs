//! A relay dies while another one is known.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use mesh_lab::mesh::wait_until;
use mesh_lab::village::{self, COORDINATOR_HOST, COORDINATOR_NAME, NODES};
use mesh_lab::{Lab, Mesh, MeshOptions, Site, Village};
use nix::sys::signal::Signal;

use super::slowest::Slowest;
use super::{Kind, PATIENCE, Pair, Sample, out_of_step, progress};

/// A pair that is relayed.
const PAIR: [&str; 2] = ["office", "country"];
/// Relays that stand alone, where lines add nothing: nearer than the coordinator's. Where times scatter by more than that,
/// a path stays at the coordinator's, and this kind cannot be measured.
const RELAYS: [&str; 2] = ["relay-a", "relay-b"];

/// Kills the relay in use, and starts it again, so many times.
pub(super) fn run(lab: &Lab, trials: usize) -> anyhow::Result<(Vec<Sample>, bool)> {
    let topology =
        RELAYS.into_iter().fold(village::topology(), |topology, name| topology.site(Site::public(name)));
    let mut options = MeshOptions::new(COORDINATOR_HOST, COORDINATOR_NAME, &NODES);
    options.agent_args = ["--punch-rate", "0"].map(str::to_owned).to_vec();
    let village = Village::prepare_on(lab, topology, options)?;
    village.mesh().start()?;
    let relays = RELAYS.map(|name| Ok((name, village.start_relay(name)?)));
    let relays: BTreeMap<_, _> = relays.into_iter().collect::<anyhow::Result<_>>()?;
    let pair = Pair::start(&village, village.network(), PAIR)?;
    let mut samples = Vec::new();
    let mut slowest = Slowest::new(Kind::RelayDies, village.daemons());
    for trial in 0..trials {
        wait_known(&village)?;
        progress(Kind::RelayDies, trial, &samples);
        slowest.begin();
        std::thread::sleep(out_of_step(trial));
        let used = through(&village)?;
        let relay = RELAYS.into_iter().find(|name| used.ends_with(name));
        let relay = &relays[relay.with_context(|| format!("the pair goes by {used}"))?];
        relay.kill(Signal::SIGKILL)?;
        let since = Instant::now();
        let sample = Sample { reply: pair.wait(since), direct: None };
        slowest.end(trial, &sample)?;
        samples.push(sample);
        relay.start()?;
    }
    Ok((samples, pair.finish()))
}

/// Waits until both ends have an answer through both relays, and use one of them.
fn wait_known(mesh: &Mesh) -> anyhow::Result<()> {
    wait_until(PATIENCE, "both relays are known", || {
        for (from, to) in [(PAIR[0], PAIR[1]), (PAIR[1], PAIR[0])] {
            let why = mesh.node(from)?.get(&format!("/v1/why/{to}"))?;
            let paths = why["paths"].as_array().context("no paths")?;
            for relay in RELAYS {
                let is = |path: &&serde_json::Value| path["path"] == format!("relay {relay}");
                let known = paths.iter().find(is).is_some_and(|path| !path["last_answer"].is_null());
                ensure!(known, "{from} knows {paths:?}");
            }
        }
        let (there, back) = (through(mesh)?, mesh.node(PAIR[1])?.primary(PAIR[0])?);
        let is_ours = |path: &str| RELAYS.iter().any(|name| path.ends_with(name));
        ensure!(
            is_ours(&there) && back.as_ref().is_some_and(|path| is_ours(&path.path)),
            "{there}, {back:?}"
        );
        Ok(true)
    })
}

/// What the pair goes through.
fn through(mesh: &Mesh) -> anyhow::Result<String> {
    Ok(mesh.node(PAIR[0])?.primary(PAIR[1])?.context("no path")?.path)
}
