//! The agent's unit with the drop-in that makes it a pod network: what it may do, and that traffic outlives its restarts.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use mesh_lab::Netns;
use mesh_lab::kubernetes::Stream;
use mesh_lab::mesh::wait_until;

use crate::checks::{self, PATIENCE};
use crate::rig::Rig;

/// The exposure that `systemd-analyze security` may find with the drop-in, in tenths.
const EXPOSURE: u32 = 19;
/// For how long a stream may be silent at a restart of the agent.
const SILENCE: Duration = Duration::from_secs(5);
/// How many restarts it goes through.
const RESTARTS: usize = 7;

/// The drop-in is in force: root without root's powers, who may write what a pod network takes and nothing else.
pub(crate) fn runs_as_its_drop_in_says(rig: &Rig, name: &str) -> anyhow::Result<()> {
    let machine = rig.machine(name);
    let property = |name: &str| machine.shell(&format!("systemctl show --value -p {name} mesh-agent"));
    ensure!(property("User")? == "root", "the agent runs as {}", property("User")?);
    let bounds = property("CapabilityBoundingSet")?;
    ensure!(bounds == "cap_net_admin cap_net_raw", "the agent may have {bounds}");
    ensure!(property("ProtectSystem")? == "strict", "the system can be written");
    ensure!(property("NRestarts")? == "0", "it was started {} times again", property("NRestarts")?);
    // What its process has is what counts.
    let pid = property("MainPID")?;
    let held = machine.shell(&format!("grep -E '^Cap(Eff|Bnd)' /proc/{pid}/status | cut -f2 | sort -u"))?;
    ensure!(held == "0000000000003000", "the agent's process holds {held}");
    let said = machine.shell("systemd-analyze verify mesh-agent.service 2>&1")?;
    ensure!(said.is_empty(), "what systemd says to the unit: {said}");
    let exposure = machine.run("systemd-analyze", ["security", "--no-pager", "mesh-agent.service"])?.stdout;
    println!("{}", exposure.lines().last().unwrap_or_default());
    machine
        .shell(&format!("systemd-analyze security --no-pager --threshold={EXPOSURE} mesh-agent.service"))
        .context("the unit is too open")?;
    Ok(())
}

/// A stream from a pod of one node to a pod of another outlives restarts of the agent.
pub(crate) fn streams_survive_a_restart(rig: &Rig, name: &str, other: &str) -> anyhow::Result<()> {
    let stream = stream(rig, [name, other])?;
    let machine = rig.machine(name);
    let mut silences = Vec::new();
    for _ in 0..RESTARTS {
        let before = stream.count();
        wait_until(PATIENCE, "the stream runs", || Ok(stream.count() > before + 10))?;
        stream.take_longest();
        machine.shell("systemctl restart mesh-agent")?;
        let before = stream.count();
        wait_until(PATIENCE, "the stream goes on", || Ok(stream.count() > before + 10))?;
        let silence = stream.take_longest();
        ensure!(silence < SILENCE, "a stream was silent for {silence:?}");
        silences.push(silence);
    }
    silences.sort();
    println!("gaps at restarts of {name}'s agent: {silences:.0?}");
    stream.finish()
}

/// A stream from the pod of the first node to that of the second.
pub(crate) fn stream(rig: &Rig, [name, other]: [&str; 2]) -> anyhow::Result<Stream> {
    let to = checks::pods(rig)?[other].address()?;
    Stream::start(&netns(rig, name)?, to)
}

/// The network of the pod on a node.
pub(crate) fn netns(rig: &Rig, name: &str) -> anyhow::Result<Netns> {
    let pod = &checks::pods(rig)?[name];
    let pids = rig.machine(name).processes_of_pod(&pod.uid);
    Netns::of_process(*pids.first().with_context(|| format!("no process of {pod:?}"))?)
}
