//! Chains of other programs that drop what is forwarded, where no rule of ours may stand.
//!
//! A chain of nftables with the policy drop, or whose last rule refuses all that is left, decides for itself. If its table
//! names neither our interfaces nor the pods' ranges, pods' packets cannot pass, and only its owner can change that:
//! firewalld's can be told how. The chains of the iptables are left to [`super::accept`].

use serde::Deserialize;

use super::{Desired, Problem, TABLE, nft};

/// Firewalld's table, as it is listed, family first.
const FIREWALLD: (&str, &str) = ("inet", "firewalld");
/// Its default zone, if that lets everything pass.
const TRUSTED: &str = "goto filter_FWD_trusted";
/// What a rule without a condition begins with where it counts.
const COUNTER: &str = "counter";
/// How many words that is.
const COUNTER_WORDS: usize = 5;

/// What `nft -j list chains` says.
#[derive(Debug, Deserialize)]
struct Listing {
    nftables: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    chain: Option<Chain>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Chain {
    family: String,
    table: String,
    name: String,
    #[serde(default)]
    hook: String,
    #[serde(default)]
    policy: String,
}

/// Looks for them.
pub(super) async fn problems(desired: &Desired) -> Vec<Problem> {
    let mut problems = Vec::new();
    let Ok(listing) = nft(&["-j", "list", "chains"], "").await else { return problems };
    for Chain { family, table, name, policy, .. } in of_others(&listing) {
        let refuses = policy == "drop"
            || ends_with_a_refusal(
                &nft(&["list", "chain", &family, &table, &name], "").await.unwrap_or_default(),
            );
        if !refuses {
            continue;
        }
        let rules = nft(&["list", "table", &family, &table], "").await.unwrap_or_default();
        if speaks_of_pods(&rules, desired) {
            continue;
        }
        let (bridge, interface) = (desired.bridge(), desired.interface.clone());
        problems.push(if (family.as_str(), table.as_str()) == FIREWALLD {
            Problem::Firewalld { bridge, interface }
        } else {
            Problem::ForwardDropped { chain: format!("{family} {table} {name}"), bridge, interface }
        });
    }
    problems
}

/// The chains that see what is forwarded, but for ours and those of the iptables.
fn of_others(listing: &str) -> Vec<Chain> {
    let Ok(listing) = serde_json::from_str::<Listing>(listing) else { return Vec::new() };
    let of_iptables = |chain: &Chain| {
        ["ip", "ip6"].contains(&chain.family.as_str()) && chain.table == "filter" && chain.name == "FORWARD"
    };
    listing
        .nftables
        .into_iter()
        .filter_map(|entry| entry.chain)
        .filter(|chain| chain.hook == "forward" && chain.table != TABLE && !of_iptables(chain))
        .collect()
}

/// Whether the last rule of a chain, as it is listed, refuses whatever has come so far.
fn ends_with_a_refusal(listing: &str) -> bool {
    let mut rules = listing.lines().map(str::trim).filter(|line| !line.is_empty() && *line != "}");
    let last = rules.next_back().unwrap_or_default();
    let counted = if last.starts_with(COUNTER) { COUNTER_WORDS } else { 0 };
    matches!(last.split_whitespace().nth(counted), Some("drop" | "reject"))
}

fn speaks_of_pods(rules: &str, desired: &Desired) -> bool {
    let ranges = desired.cluster_pods.iter().chain(&desired.pods).map(ToString::to_string);
    let mut named = [desired.bridge(), desired.interface.clone()].into_iter().chain(ranges);
    named.any(|word| rules.contains(&word)) || rules.lines().any(|line| line.trim() == TRUSTED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::podnet::fixtures;

    #[test]
    fn chains_of_others_are_found_unless_they_know_pods() {
        let listing = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"chain": {"family": "inet", "table": "fw", "name": "fwd", "handle": 1, "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 1, "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "inet", "table": "fw", "name": "in", "handle": 2, "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "inet", "table": "firewalld", "name": "filter_FORWARD", "handle": 4, "type": "filter", "hook": "forward", "prio": 10, "policy": "accept"}},
            {"chain": {"family": "inet", "table": "mesh-pods", "name": "forward", "handle": 5, "type": "filter", "hook": "forward", "prio": -150, "policy": "accept"}},
            {"chain": {"family": "inet", "table": "fw", "name": "plain", "handle": 3}}]}"#;
        let names: Vec<_> = of_others(listing).into_iter().map(|chain| chain.name).collect();
        assert_eq!(names, ["fwd", "filter_FORWARD"]);
        assert!(of_others("nonsense").is_empty());
        let desired = fixtures::desired();
        assert!(speaks_of_pods("iifname \"cni-mesh0\" accept", &desired));
        assert!(speaks_of_pods("ip saddr 10.244.0.0/16 accept", &desired));
        assert!(!speaks_of_pods("iifname \"eth0\" accept", &desired));
        assert!(speaks_of_pods("\tgoto filter_FWD_trusted\n", &desired));
        assert!(!speaks_of_pods("\tiifname \"eth0\" goto filter_FWD_trusted\n", &desired));
    }

    #[test]
    fn a_chain_may_refuse_by_its_last_rule() {
        let chain = |last: &str| {
            format!(
                "table inet firewalld {{\n\tchain filter_FORWARD {{\n\
                 \t\ttype filter hook forward priority filter + 10; policy accept;\n\
                 \t\tct state invalid drop\n\t\t{last}\n\t}}\n}}\n"
            )
        };
        for refuses in ["reject with icmpx admin-prohibited", "drop", "counter packets 3 bytes 180 reject"] {
            assert!(ends_with_a_refusal(&chain(refuses)), "{refuses}");
        }
        for passes in ["jump filter_FORWARD_ZONES", "ct state invalid drop", "counter packets 3 bytes 180"] {
            assert!(!ends_with_a_refusal(&chain(passes)), "{passes}");
        }
        assert!(!ends_with_a_refusal(""));
    }
}
