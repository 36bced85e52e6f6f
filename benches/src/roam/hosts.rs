//! What happens to a host: it sleeps, or its agent dies.

use std::time::{Duration, Instant};

use anyhow::ensure;
use mesh_lab::Village;
use mesh_lab::mesh::wait_until;
use mesh_proto::status::ConnectionState;
use nix::sys::signal::Signal;

use super::overlay::Overlay as _;
use super::slowest::Slowest;
use super::{Kind, PATIENCE, Pair, Sample, out_of_step, progress};

/// The one that sleeps, and where it wakes up, in turns.
const SLEEPER: &str = "macbook";
const BEDS: [&str; 2] = ["cafe", "lte"];
const PEER: &str = "country";
/// The agent that is killed, and whom it asks: a pair that needs no relay.
const VICTIM: &str = "country";
const OTHER: &str = "home-a";
/// For how long an agent stands still: longer than anybody keeps a connection on which nothing comes.
const SLEEP: Duration = Duration::from_secs(22);
/// What is known is on disk after this.
const WRITTEN: Duration = Duration::from_secs(4);

/// An agent stands still, while its host moves and what knew it forgets it, as over a night.
///
/// The clocks of this machine cannot be moved: what 8 hours do beside the clocks is done to the others. NATs forget all
/// mappings, and coordinator and relay are started anew, so that connection and channel are gone. What is missing is the
/// handshake with the peer, one round trip more: keys live for three minutes, and the tests of the engine see to those.
pub(super) fn wake(village: &Village, trials: usize) -> anyhow::Result<(Vec<Sample>, bool)> {
    let network = village.network();
    let pair = Pair::start(village, network, [SLEEPER, PEER])?;
    let mut samples = Vec::new();
    let mut slowest = Slowest::new(Kind::Wake, village.daemons());
    for trial in 0..trials {
        village.settle([SLEEPER, PEER])?;
        progress(Kind::Wake, trial, &samples);
        slowest.begin();
        std::thread::sleep(out_of_step(trial));
        pair.set_silent(true);
        village.node(SLEEPER)?.kill(Signal::SIGSTOP)?;
        let asleep = Instant::now();
        network.move_host(SLEEPER, BEDS[trial % BEDS.len()])?;
        village.coordinator().kill(Signal::SIGKILL)?;
        village.start_coordinator()?;
        for site in BEDS.into_iter().chain([PEER]) {
            network.reboot(site)?;
        }
        wait_until(PATIENCE, "the peer is connected", || {
            let status = village.node(PEER)?.status()?.this;
            ensure!(status.coordinator.state == ConnectionState::Connected, "{:?}", status.coordinator);
            Ok(status.relay.is_some())
        })?;
        std::thread::sleep(SLEEP.saturating_sub(asleep.elapsed()));
        let since = Instant::now();
        village.node(SLEEPER)?.kill(Signal::SIGCONT)?;
        pair.probe.set_silent(false);
        let sample = Sample { reply: pair.wait(since), direct: None };
        slowest.end(trial, &sample)?;
        samples.push(sample);
        pair.set_silent(false);
    }
    Ok((samples, pair.finish()))
}

/// An agent is killed and started, while coordinator and relay are away: from the start of the process on.
pub(super) fn cold_start(village: &Village, trials: usize) -> anyhow::Result<(Vec<Sample>, bool)> {
    let pair = Pair::start(village, village.network(), [VICTIM, OTHER])?;
    village.settle([VICTIM, OTHER])?;
    std::thread::sleep(WRITTEN);
    village.coordinator().kill(Signal::SIGKILL)?;
    let mut samples = Vec::new();
    let mut slowest = Slowest::new(Kind::ColdStart, village.daemons());
    for trial in 0..trials {
        village.settle([VICTIM, OTHER])?;
        progress(Kind::ColdStart, trial, &samples);
        slowest.begin();
        std::thread::sleep(out_of_step(trial));
        village.node(VICTIM)?.kill(Signal::SIGKILL)?;
        let since = Instant::now();
        village.node(VICTIM)?.start()?;
        let sample = Sample { reply: pair.wait(since), direct: None };
        slowest.end(trial, &sample)?;
        samples.push(sample);
    }
    let whole = pair.finish();
    village.start_coordinator()?;
    Ok((samples, whole))
}
