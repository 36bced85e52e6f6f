//! What a container runtime asks that speaks CNI 1.1, which containerd 1.6 does not: STATUS and GC, through the library that
//! runtimes use (`kubernetes/plugins/runtime`).

use anyhow::{Context as _, ensure};
use mesh_lab::process::Finished;
use nix::sys::signal::Signal;

use crate::rig::Rig;
use crate::talk::{goes_on, stream};

/// Where.
const NODE: &str = "country";
/// Who talks with a pod there.
const OTHER: &str = "office";
/// Our network's name, and where its addresses are noted.
const NETWORK: &str = "mesh";
const LEASES: &str = "/run/cni/mesh/mesh";
/// host-local gives addresses in their order: it has not come so far.
const LEAKED: usize = 249;
/// The runtime's containers that hold a pod's network.
const SANDBOXES: &str = r#"labels."io.cri-containerd.kind"==sandbox"#;
/// A container that was killed with its runtime: its address was never given back.
const CRASHED: &str = "c4a54ed0c4a54ed0c4a54ed0c4a54ed0c4a54ed0c4a54ed0c4a54ed0c4a54ed0\r\neth0";

/// STATUS says whether the agent answers; GC frees what no pod has, and nothing else. Pods that talk do not notice.
pub(crate) fn it_is_told_and_may_clean_up(rig: &Rig) -> anyhow::Result<()> {
    let web = rig.cluster.pods("web")?;
    let stream = stream(&rig.cluster, &web[OTHER], &web[NODE])?;
    status_follows_the_agent(rig)?;
    goes_on(&stream)?;
    addresses_of_nobody_are_freed(rig)?;
    goes_on(&stream)?;
    rig.asks(&web[OTHER], &web[NODE])?;
    rig.asks(&web[NODE], &web[OTHER])?;
    stream.finish().context("the stream")
}

fn status_follows_the_agent(rig: &Rig) -> anyhow::Result<()> {
    let agent = rig.village.node(NODE)?;
    ask(rig, ["status", NETWORK])?.success()?;
    agent.kill(Signal::SIGKILL)?;
    let dead = ask(rig, ["status", NETWORK])?;
    let said = dead.stderr.trim();
    ensure!(
        dead.code() != 0 && said.contains("no agent answers at ") && said.lines().count() == 1,
        "a dead agent is told as {dead:?}"
    );
    println!("a runtime is told of a dead agent: {said}");
    agent.start()?;
    rig.wait_agent(NODE)?;
    ask(rig, ["status", NETWORK])?.success().map(drop)
}

fn addresses_of_nobody_are_freed(rig: &Rig) -> anyhow::Result<()> {
    let worker = rig.cluster.worker(NODE)?;
    let leaked = rig.pod_ranges(NODE)?[0].hosts().nth(LEAKED).context("a range with so many addresses")?;
    let before = worker.leases()?;
    std::fs::write(worker.directory(LEASES).join(leaked.to_string()), CRASHED)?;
    let sandboxes = ["--namespace", "k8s.io", "containers", "list", "--quiet", SANDBOXES];
    let sandboxes = worker.command("ctr")?.args(sandboxes).output()?.success()?.stdout;
    let known: Vec<&str> = sandboxes.split_whitespace().collect();
    ask(rig, ["gc", NETWORK].into_iter().chain(known.iter().copied()))?.success()?;
    let after = worker.leases()?;
    ensure!(!before.contains(&leaked) && after == before, "before {before:?}, after GC {after:?}");
    let pods = rig.all_pods()?;
    let here: Vec<_> = pods.iter().filter(|pod| pod.node == NODE).collect();
    ensure!(
        here.iter().flat_map(|pod| &pod.addresses).all(|address| after.contains(address)),
        "{here:?} are not all in {after:?}"
    );
    println!("GC freed {leaked}, and left {} addresses to {} sandboxes", after.len(), known.len());
    Ok(())
}

fn ask<'a>(rig: &Rig, args: impl IntoIterator<Item = &'a str>) -> anyhow::Result<Finished> {
    let runtime = rig.cluster.binaries().path("runtime");
    let program = runtime.to_str().context("a path that is not UTF-8")?;
    rig.cluster.worker(NODE)?.command(program)?.args(args).output()
}
