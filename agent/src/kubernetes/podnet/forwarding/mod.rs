//! What the kernel does with pods' packets: settings, the own table of nftables, and rules that let them pass.
//!
//! The table is given to `nft` as one transaction, and what the kernel then lists is kept: as long as it lists the same,
//! nothing is done. Whether it need be asked at all is told by the [`generation`] of the rules. What others change is put
//! back, by [`Patience`]: whoever changes it again and again wins more and more of the time, and it is said.

mod accept;
mod foreign;
mod generation;
mod kernel;
mod ruleset;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tokio::process::Command;

pub use ruleset::TABLE;

use self::generation::Generation;
use super::{Desired, Problem, program};
use crate::{
    os::Family,
    reconcile::{Attitude, Patience},
};

/// `iptables` waits up to 5 s for others.
const PATIENCE: Duration = Duration::from_secs(15);

/// The rules of this node.
#[derive(Debug, Default)]
pub(super) struct Forwarding {
    applied: Option<Applied>,
    patience: Patience,
    /// What was found at the last look, and stays so while the generation does.
    found: Vec<Problem>,
}

/// What was set, and how the kernel tells of it.
#[derive(Debug)]
struct Applied {
    ruleset: String,
    listing: String,
    cluster: Vec<IpNet>,
    generation: Option<Generation>,
}

impl Forwarding {
    /// Has settings and rules be as wanted; `uplinks` are the interfaces to the world.
    pub(super) async fn set(&mut self, desired: &Desired, uplinks: &[String], now: Instant) -> Vec<Problem> {
        let mut problems = kernel::set(desired, uplinks);
        let generation = Generation::read().ok();
        let ruleset = ruleset::render(desired);
        let cluster = accepted(desired);
        let same = |applied: &Applied| applied.ruleset == ruleset && applied.cluster == cluster;
        let quiet = self
            .applied
            .as_ref()
            .is_some_and(|applied| same(applied) && generation.is_some() && applied.generation == generation);
        let legacy = accept::PROGRAMS.iter().any(|program| program.tables.is_some() && program.is_in_use());
        if quiet && !legacy {
            problems.extend(self.found.iter().cloned());
            return problems;
        }
        self.found = self.set_rules(desired, ruleset, cluster, now).await;
        problems.extend(self.found.iter().cloned());
        problems
    }

    /// Removes all rules; settings of the kernel stay, for others may have come to need them.
    pub(super) async fn remove(&mut self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let transaction = format!("add table inet {TABLE}\ndelete table inet {TABLE}\n");
        if let Err(reason) = nft(&["-f", "-"], &transaction).await {
            problems.push(Problem::Filter { program: "nft", reason });
        }
        problems.extend(each_chain(|_, listing| accept::plan_removal(listing)).await);
        *self = Self::default();
        problems
    }

    async fn set_rules(
        &mut self,
        desired: &Desired,
        ruleset: String,
        cluster: Vec<IpNet>,
        now: Instant,
    ) -> Vec<Problem> {
        let mut problems = Vec::new();
        match self.set_table(ruleset, &cluster, now).await {
            Ok(None) => {}
            Ok(Some(problem)) => problems.push(problem),
            Err(reason) => problems.push(Problem::Filter { program: "nft", reason }),
        }
        let wanted = |program: accept::Program, listing: &str| {
            let of_family = |range: &&IpNet| Family::of(range.addr()) == program.family;
            accept::plan(listing, &cluster.iter().filter(of_family).copied().collect::<Vec<_>>())
        };
        problems.extend(each_chain(wanted).await);
        problems.extend(foreign::problems(desired).await);
        // Read last: what was changed here is known.
        if let Some(applied) = &mut self.applied {
            applied.generation = Generation::read().ok();
        }
        problems
    }

    /// Has the table be as wanted.
    async fn set_table(
        &mut self,
        ruleset: String,
        cluster: &[IpNet],
        now: Instant,
    ) -> Result<Option<Problem>, String> {
        let mut problem = None;
        if let Some(applied) = self.applied.as_mut().filter(|applied| applied.ruleset == ruleset) {
            applied.cluster = cluster.to_vec();
            if list().await == applied.listing {
                return Ok(None);
            }
            let contested = Problem::Contested { what: TABLE };
            if self.patience.put_off_until(now).is_some() {
                return Ok(Some(contested));
            }
            match self.patience.handle_drift(now) {
                Attitude::Calm => tracing::info!(table = TABLE, "another program changed it; put back"),
                Attitude::Contested { wait: _, news: _ } => problem = Some(contested),
            }
        }
        nft(&["-f", "-"], &ruleset).await?;
        let listing = list().await;
        self.applied = Some(Applied { ruleset, listing, cluster: cluster.to_vec(), generation: None });
        Ok(problem)
    }
}

/// The ranges whose packets are forwarded: of all pods, and of the own ones if those are not among them.
fn accepted(desired: &Desired) -> Vec<IpNet> {
    let all = desired.cluster_pods.iter().chain(&desired.pods).map(IpNet::trunc);
    IpNet::aggregate(&all.collect())
}

/// Plans and changes each chain FORWARD that is there.
async fn each_chain(plan: impl Fn(accept::Program, &str) -> Vec<Vec<String>>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for program in accept::PROGRAMS.into_iter().filter(accept::Program::is_in_use) {
        // Without the program there is nobody who could have made rules with it.
        let Some(path) = program::find(&program.names) else { continue };
        if let Err(reason) = set_chain(&path, |listing| plan(program, listing)).await {
            problems.push(Problem::Filter { program: program.names[0], reason });
        }
    }
    problems
}

async fn set_chain(path: &Path, plan: impl Fn(&str) -> Vec<Vec<String>>) -> Result<(), String> {
    let run = |args: &[String]| {
        let mut command = Command::new(path);
        command.args(args);
        program::run(command, b"", PATIENCE)
    };
    let listing = run(&["-w", "5", "-S", "FORWARD"].map(str::to_owned)).await?;
    for change in plan(&listing) {
        run(&change).await?;
    }
    Ok(())
}

/// Lists the own table without what counts; nothing if there is none.
async fn list() -> String {
    nft(&["-s", "list", "table", "inet", TABLE], "").await.unwrap_or_default()
}

async fn nft(args: &[&str], input: &str) -> Result<String, String> {
    let path = program::find(&["nft"]).ok_or("it is not installed: the package is called nftables")?;
    let mut command = Command::new(path);
    command.args(args);
    program::run(command, input.as_bytes(), PATIENCE).await
}
