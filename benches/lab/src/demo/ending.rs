//! The end: everything stops in order, and it is looked for what is left.

use std::time::Instant;

use super::stage::{Stage, millis};
use crate::mesh::Before;
use crate::netns;
use crate::run;
use crate::village::Village;

/// What agents warn of while the coordinator is dead.
const COORDINATOR_AWAY: &str = "the coordinator is not reached";

/// Stops all daemons and compares every host with how it was before.
pub(super) fn stop(stage: &mut Stage, village: &Village, before: &Before) -> anyhow::Result<()> {
    let started = Instant::now();
    village.stop()?;
    stage.promise(
        true,
        &format!("six agents and the coordinator stop in order in {}", millis(started.elapsed())),
    );
    let left = village.leftovers(before)?;
    let text = match left.is_empty() {
        true => "no process, interface, address, route, rule or socket is left on any host".to_owned(),
        false => format!("left on the hosts: {}", left.join("; ")),
    };
    stage.promise(left.is_empty(), &text);
    match village.check_logs(&[COORDINATOR_AWAY]) {
        Ok(()) => stage.promise(true, "no daemon has logged a warning but that the coordinator was away"),
        Err(error) => stage.break_promise(&format!("{error:#}")),
    }
    Ok(())
}

/// Looks for what the run may have left on the machine itself.
pub(super) fn check_removed(stage: &mut Stage, id: &str) {
    let mut left: Vec<String> = netns::list(&run::namespace_prefix(id));
    left.extend(run::directory_of(id).exists().then(|| run::directory_of(id).display().to_string()));
    let text = match left.is_empty() {
        true => "no namespace, process or file of this run is left on the machine".to_owned(),
        false => format!("left on the machine: {}", left.join(", ")),
    };
    stage.promise(left.is_empty(), &text);
}
