//! The coordinator dies, then an agent, and traffic goes on.
//!
//! The demo stands in for the service manager, which starts again what ended: see `Restart=` and `RestartSec=` of the
//! units in `deploy/systemd`.

use std::time::{Duration, Instant};

use mesh_proto::status::ConnectionState;
use nix::sys::signal::Signal;

use super::stage::{Stage, millis};
use crate::mesh::wait_until;
use crate::topology::Reach;
use crate::traffic::{Echo, Flow};
use crate::village::{NODES, Village};

/// `RestartSec=` of the units.
const RESTART: Duration = Duration::from_secs(1);
/// How long traffic is watched while the coordinator is away.
const WATCH: Duration = Duration::from_secs(4);
/// The longest silence of a direct pair that is no outage: some requests, on a busy machine.
const HICCUP: Duration = Duration::from_millis(1500);
/// How long anything may take to come back.
const RECOVERY: Duration = Duration::from_secs(15);
/// The agent that is killed.
const VICTIM: &str = "country";

/// kill -9 of the coordinator, and of the relay with it: direct pairs do not notice.
pub(super) fn kill_coordinator(stage: &mut Stage, village: &Village, echo: &Echo) -> anyhow::Result<()> {
    let direct = direct_pairs(village)?;
    village.coordinator().kill(Signal::SIGKILL)?;
    stage.say("kill -9 of the coordinator, which is the relay too");
    echo.forget();
    std::thread::sleep(WATCH);
    let flows: Vec<Flow> = echo.flows().into_iter().filter(|flow| direct(&flow.from, &flow.to)).collect();
    let longest = flows.iter().map(|flow| flow.longest_gap).max().unwrap_or_default();
    let answered: u32 = flows.iter().map(|flow| flow.received).sum();
    stage.promise(
        longest < HICCUP,
        &format!(
            "{} direct pairs go on for {WATCH:?}: {answered} replies, the longest silence {}",
            flows.len(),
            millis(longest)
        ),
    );
    Ok(())
}

/// kill -9 of an agent while the coordinator is away: it comes back from what it has on disk.
pub(super) fn kill_agent(stage: &mut Stage, village: &Village, echo: &Echo) -> anyhow::Result<()> {
    let direct = direct_pairs(village)?;
    village.node(VICTIM)?.kill(Signal::SIGKILL)?;
    stage.say(&format!("kill -9 of the agent on {VICTIM}, while the coordinator is away"));
    std::thread::sleep(RESTART);
    let restarted = Instant::now();
    village.node(VICTIM)?.start()?;
    // Straight pairs need nobody else: addresses are on disk, and mappings in the routers.
    let is_wanted = |from: &str, to: &str| (from == VICTIM || to == VICTIM) && direct(from, to);
    match echo.wait_for(restarted, RECOVERY, is_wanted) {
        Ok(after) => stage.promise(
            true,
            &format!(
                "restarted, {VICTIM} is back from its disk cache and reaches its peers {} later",
                millis(after)
            ),
        ),
        Err(error) => stage.break_promise(&format!("{VICTIM} does not come back by itself: {error:#}")),
    }
    Ok(())
}

/// The coordinator comes back: everyone connects again, and relayed pairs flow again.
pub(super) fn bring_coordinator_back(
    stage: &mut Stage,
    village: &Village,
    echo: &Echo,
) -> anyhow::Result<()> {
    let started = Instant::now();
    village.start_coordinator()?;
    stage.say("the coordinator is started again");
    match echo.wait_all(started, RECOVERY) {
        Ok(after) => {
            stage
                .promise(true, &format!("all pairs, relayed ones too, answer again after {}", millis(after)));
        }
        Err(error) => stage.break_promise(&format!("pairs do not come back by themselves: {error:#}")),
    }
    let connected = wait_until(RECOVERY, "every agent is connected again", || {
        let states: anyhow::Result<Vec<_>> =
            village.nodes().map(|node| Ok(node.status()?.this.coordinator.state)).collect();
        Ok(states?.into_iter().all(|state| state == ConnectionState::Connected))
    });
    let text = match &connected {
        Ok(()) => format!("all agents are connected to it again after {}", millis(started.elapsed())),
        Err(error) => format!("agents stay away from the coordinator: {error:#}"),
    };
    stage.promise(connected.is_ok(), &text);
    Ok(())
}

/// Which pairs need no relay, also to become direct again.
fn direct_pairs(village: &Village) -> anyhow::Result<impl Fn(&str, &str) -> bool> {
    let mut pairs = Vec::new();
    for from in NODES {
        for to in NODES.into_iter().filter(|to| *to != from) {
            if matches!(village.network().reach(from, to)?, Reach::Lan | Reach::Direct) {
                pairs.push((from, to));
            }
        }
    }
    Ok(move |from: &str, to: &str| pairs.contains(&(from, to)))
}
