//! Chains of other programs that drop what is forwarded, where no rule of ours may stand.
//!
//! A chain of nftables with the policy drop decides for itself. If its table names neither our interfaces nor the pods'
//! ranges, pods' packets cannot pass, and only its owner can change that. The chains of the iptables are left to
//! [`super::accept`].

use serde::Deserialize;

use super::{Desired, Problem, nft};

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
    for Chain { family, table, name, .. } in dropping(&listing) {
        let rules = nft(&["list", "table", &family, &table], "").await.unwrap_or_default();
        if !speaks_of_pods(&rules, desired) {
            problems.push(Problem::ForwardDropped {
                chain: format!("{family} {table} {name}"),
                bridge: desired.bridge(),
                interface: desired.interface.clone(),
            });
        }
    }
    problems
}

fn dropping(listing: &str) -> Vec<Chain> {
    let Ok(listing) = serde_json::from_str::<Listing>(listing) else { return Vec::new() };
    let of_iptables = |chain: &Chain| {
        ["ip", "ip6"].contains(&chain.family.as_str()) && chain.table == "filter" && chain.name == "FORWARD"
    };
    listing
        .nftables
        .into_iter()
        .filter_map(|entry| entry.chain)
        .filter(|chain| chain.hook == "forward" && chain.policy == "drop" && !of_iptables(chain))
        .collect()
}

fn speaks_of_pods(rules: &str, desired: &Desired) -> bool {
    let ranges = desired.cluster_pods.iter().chain(&desired.pods).map(ToString::to_string);
    [desired.bridge(), desired.interface.clone()].into_iter().chain(ranges).any(|word| rules.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::podnet::fixtures;

    #[test]
    fn chains_that_drop_are_found_unless_they_know_pods() {
        let listing = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"chain": {"family": "inet", "table": "fw", "name": "fwd", "handle": 1, "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 1, "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "inet", "table": "fw", "name": "in", "handle": 2, "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "inet", "table": "fw", "name": "plain", "handle": 3}}]}"#;
        let names: Vec<_> = dropping(listing).into_iter().map(|chain| chain.name).collect();
        assert_eq!(names, ["fwd"]);
        assert!(dropping("nonsense").is_empty());
        let desired = fixtures::desired();
        assert!(speaks_of_pods("iifname \"cni-mesh0\" accept", &desired));
        assert!(speaks_of_pods("ip saddr 10.244.0.0/16 accept", &desired));
        assert!(!speaks_of_pods("iifname \"eth0\" accept", &desired));
    }
}
