//! The network, the coordinator, and six joins.

use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::stage::{Stage, millis};
use crate::mesh::wait_until;
use crate::topology::Gateway;
use crate::village::{NODES, Village};

/// How long an agent may take until it is ready; far beyond its budget, for machines that are busy.
const READY_PATIENCE: Duration = Duration::from_secs(15);
/// A longer word is shown by its beginning only: tokens and hashes.
const LONGEST_WORD: usize = 28;
/// What is shown of such a word.
const SHOWN: usize = 12;

/// Shows who stands where.
pub(super) fn show_network(stage: &mut Stage, village: &Village) -> anyhow::Result<()> {
    for site in &village.network().topology().sites {
        let hosts = match site.hosts.as_slice() {
            [] => "nobody yet".to_owned(),
            hosts => hosts.join(", "),
        };
        let nat = match &site.gateway {
            Gateway::Public => "public".to_owned(),
            Gateway::Router(nat) => format!("NAT {}", nat.kind),
        };
        let outside = village.network().outside(&site.name)?;
        let share = site.line.up.delay + site.line.down.delay;
        stage.show(format!(
            "{:<8} {:<14} {nat:<14} {outside:<15} {} ms",
            site.name,
            hosts,
            share.as_millis()
        ));
    }
    stage.say(&format!("{} sites stand", village.network().topology().sites.len()));
    Ok(())
}

/// Starts the coordinator, joins every node with a token of its own, and waits until all are ready.
pub(super) fn join_all(stage: &mut Stage, village: &Village) -> anyhow::Result<()> {
    let started = Instant::now();
    village.start_coordinator()?;
    stage.say(&format!("the coordinator on pi answers after {}", millis(started.elapsed())));
    for name in NODES {
        let line = village.token(&[])?;
        let node = village.node(name)?;
        stage.say(&format!("{name} $ {}", shortened(&line)));
        let started = Instant::now();
        node.join(&line).with_context(|| format!("{name} does not join"))?;
        let joined = started.elapsed();
        node.start()?;
        wait_until(READY_PATIENCE, &format!("{name} is ready"), || Ok(node.is_ready()))?;
        let address = node.address()?;
        stage.promise(
            true,
            &format!(
                "{name} is {address}: joined in {}, ready {} after",
                millis(joined),
                millis(started.elapsed() - joined)
            ),
        );
    }
    Ok(())
}

/// A join line whose long words, which hold secrets, are cut.
fn shortened(line: &str) -> String {
    let cut = |word: &str| match word.chars().count() > LONGEST_WORD {
        true => format!("{}…", word.chars().take(SHOWN).collect::<String>()),
        false => word.to_owned(),
    };
    line.split_whitespace().map(cut).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_cut_and_the_rest_is_kept() {
        let line = "mesh-agent join pi.duckdns.example:7443 --token abcdef.0123456789abcdef0123456789 --ca-cert-hash sha256:00112233445566778899aabbccddeeff";
        let shown = shortened(line);
        assert_eq!(
            shown,
            "mesh-agent join pi.duckdns.example:7443 --token abcdef.01234… --ca-cert-hash sha256:00112…"
        );
    }
}
