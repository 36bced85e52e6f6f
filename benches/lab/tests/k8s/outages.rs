//! What happens to a cluster in its first year, to pods that talk meanwhile. No connection may break; how long one is
//! silent is printed and not asserted: TCP waits longer than the network, and the machine may be busy.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mesh_lab::kubernetes::daemon_set;
use mesh_lab::mesh::{Ending, Service, wait_until};
use mesh_lab::nat::Egress;
use mesh_proto::status::PathKind;
use nix::sys::signal::Signal;

use crate::mtu;
use crate::rig::{PATIENCE, Rig, WORKERS};
use crate::talk::{Talk, goes_on, stream};

/// How often an agent is restarted, for a median.
const RESTARTS: usize = 5;
/// After an event, until a stream is asked how long it was silent.
const AFTERMATH: Duration = Duration::from_secs(1);

/// Streams between pods outlive the agents below them, killed and restarted in order: under a service manager, as guides
/// have it, and without one, where the interface goes with the agent.
pub(crate) fn streams_outlive_agents(rig: &Rig) -> anyhow::Result<()> {
    let web = rig.cluster.pods("web")?;
    let stream = stream(&rig.cluster, &web["country"], &web["home-a"])?;
    let agent = rig.village.node("home-a")?;
    let gaps = |restart: &dyn Fn() -> anyhow::Result<()>| {
        let mut gaps = (0..RESTARTS).map(|_| gap(&stream, restart)).collect::<anyhow::Result<Vec<_>>>()?;
        gaps.sort();
        anyhow::Ok(gaps)
    };
    let alone = gaps(&|| agent.restart())?;
    let killed_alone = gap(&stream, || {
        agent.kill(Signal::SIGKILL)?;
        agent.start()
    })?;
    agent.agent().stop()?;
    let service = Service::new(agent)?;
    service.start()?;
    rig.wait_agent("home-a")?;
    goes_on(&stream)?;
    let kept = gaps(&|| service.restart(Ending::Asked))?;
    let killed = gaps(&|| service.restart(Ending::Killed))?;
    service.stop()?;
    agent.start()?;
    rig.wait_agent("home-a")?;
    goes_on(&stream)?;
    stream.finish().context("the stream")?;
    println!("gap at a service's restart: {kept:.0?}; at its kill -9: {killed:.0?}");
    println!(
        "gap at an agent's restart without a service manager: {alone:.0?}; at kill -9: {killed_alone:.0?}"
    );
    Ok(())
}

/// A worker loses power, and has everything again that the cluster gave it.
pub(crate) fn a_worker_reboots(rig: &Rig) -> anyhow::Result<()> {
    let (worker, agent) = (rig.cluster.worker("home-b")?, rig.village.node("home-b")?);
    agent.kill(Signal::SIGKILL)?;
    worker.kill()?;
    worker.forget()?;
    let started = Instant::now();
    agent.start()?;
    rig.wait_agent("home-b")?;
    worker.resume()?;
    let mut pod = None;
    wait_until(PATIENCE, "home-b's pods are seen by others again", || {
        let web = rig.cluster.pods("web")?;
        let other = web.get("country").context("country has its pod")?;
        let Some(own) = web.get("home-b") else { return Ok(false) };
        pod = Some(own.clone());
        rig.asks(other, own).map(|()| true)
    })?;
    println!("from power-on until a pod is reached: {:.1?}", started.elapsed());
    let pod = pod.context("the pod was found")?;
    ensure!(pod.addresses.len() == rig.addresses("home-b")?.len(), "{pod:?} has not what its node has");
    rig.sees_others(&pod)
}

/// Nobody who talks notices that the DaemonSet is rolled out anew.
pub(crate) fn streams_outlive_a_rollout(rig: &Rig) -> anyhow::Result<()> {
    let web = rig.cluster.pods("web")?;
    let stream = stream(&rig.cluster, &web["office"], &web["home-b"])?;
    let kubectl = rig.cluster.kubectl()?;
    let gap = gap(&stream, || {
        kubectl.run(["--namespace", daemon_set::NAMESPACE, "rollout", "restart", daemon_set::NAME])?;
        wait_until(PATIENCE, "the rollout is over", || {
            let status = [
                "--namespace",
                daemon_set::NAMESPACE,
                "rollout",
                "status",
                "--watch=false",
                daemon_set::NAME,
            ];
            Ok(kubectl.run(status)?.contains("successfully rolled out"))
        })
    })?;
    stream.finish().context("the stream")?;
    println!("gap during a rollout of the DaemonSet: {gap:.0?}");
    Ok(())
}

/// A worker takes its pods along to another network.
pub(crate) fn streams_outlive_roaming(rig: &Rig) -> anyhow::Result<()> {
    let web = rig.cluster.pods("web")?;
    let network = rig.village.network();
    let stream = stream(&rig.cluster, &web["macbook"], &web["country"])?;
    let there = gap(&stream, || network.move_host("macbook", "cafe"))?;
    let back = gap(&stream, || network.move_host("macbook", "lte"))?;
    stream.finish().context("the stream")?;
    println!("gap when macbook roams: {there:.0?}, and back: {back:.0?}");
    rig.cluster.wait_ready(&WORKERS, PATIENCE)
}

/// A site that lets nothing out but TCP to port 443 has its pods in the cluster all the same.
pub(crate) fn a_site_without_udp_stays(rig: &Rig) -> anyhow::Result<()> {
    let web = rig.cluster.pods("web")?;
    let network = rig.village.network();
    let stream = stream(&rig.cluster, &web["office"], &web["country"])?;
    let gap = gap(&stream, || network.set_egress("office", Egress::OnlyTcp443))?;
    let office = rig.village.node("office")?;
    wait_until(PATIENCE, "office is relayed", || Ok(office.peer("country")?.path.kind == PathKind::Relay))?;
    rig.sees_others(&web["office"])?;
    mtu::large_packets_pass(rig, &web["office"], &web["country"])?;
    let own = rig.cluster.kubectl()?.run(["exec", &web["office"].name, "--", "hostname"])?;
    ensure!(own.trim() == web["office"].name);
    network.set_egress("office", Egress::Open)?;
    stream.finish().context("the stream")?;
    println!("gap when office loses all but TCP 443: {gap:.0?}");
    Ok(())
}

/// Nothing that runs needs the API server or the coordinator, and an agent starts without them.
pub(crate) fn everybody_goes_on_without_control(rig: &Rig) -> anyhow::Result<()> {
    let web = rig.cluster.pods("web")?;
    let stream = stream(&rig.cluster, &web["country"], &web["home-a"])?;
    rig.cluster.kill_control_plane()?;
    rig.village.coordinator().kill(Signal::SIGKILL)?;
    let agent = rig.village.node("country")?;
    let gap = gap(&stream, || agent.restart())?;
    rig.wait_agent("country")?;
    stream.finish().context("the stream")?;
    rig.village.start_coordinator()?;
    rig.cluster.resume_control_plane()?;
    rig.cluster.wait_ready(&WORKERS, PATIENCE)?;
    rig.sees_others(&web["country"])?;
    println!("gap at an agent's restart without coordinator and API server: {gap:.0?}");
    Ok(())
}

/// How long a stream is silent at most around some event.
fn gap(stream: &Talk, event: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    stream.take_longest();
    event()?;
    std::thread::sleep(AFTERMATH);
    goes_on(stream)?;
    Ok(stream.take_longest())
}
