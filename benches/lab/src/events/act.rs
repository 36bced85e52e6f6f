//! Making events happen.

use std::time::Instant;

use nix::sys::signal::Signal;

use super::event::Event;
use crate::mesh::Daemon;
use crate::nat::Egress;
use crate::village::Village;

/// What a power cut leaves of a host's network: nothing that a daemon has made.
const FORGET: &str = "
nft flush ruleset
for v in 4 6; do
  ip -$v rule flush
  ip -$v rule add from all lookup main priority 32766
done
ip -4 rule add from all lookup default priority 32767
";

/// Makes an event happen, and returns since when everything is as it leaves it.
///
/// # Errors
///
/// If the network or a process does not do what it should.
pub(super) fn perform(village: &Village, relay: &Daemon, event: &Event) -> anyhow::Result<Instant> {
    let network = village.network();
    match *event {
        Event::Roam { node, to, away } => {
            network.unplug(node)?;
            std::thread::sleep(away);
            network.plug(node, to)?;
        }
        Event::Reboot { site } => network.reboot(site)?,
        Event::Renumber { site, to } => network.set_outside(site, to)?,
        Event::MoveHome { to } => village.move_home(to)?,
        Event::Sleep { node, length } => {
            let node = village.node(node)?;
            node.kill(Signal::SIGSTOP)?;
            std::thread::sleep(length);
            node.kill(Signal::SIGCONT)?;
        }
        Event::Flap { node, length } => {
            let host = network.host(node)?;
            host.link_down()?;
            std::thread::sleep(length);
            host.link_up()?;
        }
        Event::Block { site } => network.set_egress(site, Egress::NoUdp)?,
        Event::Unblock { site } => network.set_egress(site, Egress::Open)?,
        Event::Kill { node, length } => {
            let node = village.node(node)?;
            node.kill(Signal::SIGKILL)?;
            std::thread::sleep(length);
            let started = Instant::now();
            node.start()?;
            return Ok(started);
        }
        Event::PowerCycle { node, length } => {
            let node = village.node(node)?;
            let site = node.host().site();
            node.kill(Signal::SIGKILL)?;
            network.unplug(node.name())?;
            node.host().command("sh").args(["-euc", FORGET]).output()?.success()?;
            let _ = std::fs::remove_file(node.socket());
            std::thread::sleep(length);
            network.plug(node.name(), &site)?;
            let started = Instant::now();
            node.start()?;
            return Ok(started);
        }
        Event::KillCoordinator => village.coordinator().kill(Signal::SIGKILL)?,
        Event::StartCoordinator => village.start_coordinator()?,
        Event::KillRelay => relay.kill(Signal::SIGKILL)?,
        Event::StartRelay => relay.start()?,
    }
    Ok(Instant::now())
}
