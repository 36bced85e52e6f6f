//! Rules that let pods' packets pass where Docker or ufw drop whatever is forwarded.
//!
//! An accept in the own table cannot help: a packet must pass every table. So where the chain FORWARD of the iptables
//! drops, or has rules of somebody else's, pods are accepted at its head. There may be two such chains on one host, of
//! `iptables-nft` and of `iptables-legacy`; a table of the latter that is not in use is not brought to life by asking.

use ipnet::IpNet;

use crate::os::Family;

/// By this comment the rules are known as ours.
const COMMENT: &str = "mesh-pods";

/// One of the programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Program {
    /// Its name, and the one that it has where there is but one.
    pub(super) names: [&'static str; 2],
    /// What it filters.
    pub(super) family: Family,
    /// Lists the tables in use, if the program's own tables are meant.
    pub(super) tables: Option<&'static str>,
}

/// All of them.
pub(super) const PROGRAMS: [Program; 4] = [
    Program { names: ["iptables-nft", "iptables"], family: Family::V4, tables: None },
    Program { names: ["ip6tables-nft", "ip6tables"], family: Family::V6, tables: None },
    Program {
        names: ["iptables-legacy", "iptables"],
        family: Family::V4,
        tables: Some("/proc/thread-self/net/ip_tables_names"),
    },
    Program {
        names: ["ip6tables-legacy", "ip6tables"],
        family: Family::V6,
        tables: Some("/proc/thread-self/net/ip6_tables_names"),
    },
];

impl Program {
    /// Whether its table is in use, as far as that can be told without it.
    pub(super) fn is_in_use(&self) -> bool {
        self.tables.is_none_or(|path| {
            std::fs::read_to_string(path).is_ok_and(|names| names.lines().any(|name| name == "filter"))
        })
    }
}

/// Returns the changes that make the chain, listed by `-S FORWARD`, accept these ranges: arguments, one list each.
pub(super) fn plan(listing: &str, ranges: &[IpNet]) -> Vec<Vec<String>> {
    let own: Vec<Vec<String>> = own_rules(listing);
    let wanted = if is_needed(listing) { rules(ranges) } else { own.clone() };
    let mut seen = Vec::new();
    let mut changes = Vec::new();
    for rule in own {
        // A rule that is there twice is one too many.
        if wanted.contains(&rule) && !seen.contains(&rule) {
            seen.push(rule);
        } else {
            changes.push(command("-D", &rule));
        }
    }
    let missing = wanted.iter().filter(|rule| !seen.contains(rule));
    changes.extend(missing.map(|rule| command("-I", rule)));
    changes
}

/// Returns the changes that remove all rules of ours.
pub(super) fn plan_removal(listing: &str) -> Vec<Vec<String>> {
    own_rules(listing).iter().map(|rule| command("-D", rule)).collect()
}

fn rules(ranges: &[IpNet]) -> Vec<Vec<String>> {
    let rule = |side: &str, range: &IpNet| {
        let words = [side, &range.to_string(), "-m", "comment", "--comment", COMMENT, "-j", "ACCEPT"];
        words.map(str::to_owned).to_vec()
    };
    ranges.iter().flat_map(|range| [rule("-s", range), rule("-d", range)]).collect()
}

/// Whether anybody but kube-proxy and the plugins, who drop no pod's packets, decides about what is forwarded.
fn is_needed(listing: &str) -> bool {
    let harmless = |line: &str| {
        line.contains("-j KUBE-")
            || line.contains("-j CNI-")
            || line.contains(&format!("--comment {COMMENT}"))
    };
    listing
        .lines()
        .any(|line| line == "-P FORWARD DROP" || (line.starts_with("-A FORWARD") && !harmless(line)))
}

fn own_rules(listing: &str) -> Vec<Vec<String>> {
    let words = |line: &str| line.split_whitespace().map(|word| word.trim_matches('"').to_owned()).collect();
    listing
        .lines()
        .filter_map(|line| line.strip_prefix("-A FORWARD "))
        .map(words)
        .filter(|words: &Vec<String>| words.windows(2).any(|pair| pair == ["--comment", COMMENT]))
        .collect()
}

fn command(verb: &str, rule: &[String]) -> Vec<String> {
    let head = ["-w", "5", verb, "FORWARD"].map(str::to_owned);
    head.into_iter().chain(rule.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "-A FORWARD -s 10.244.0.0/16 -m comment --comment mesh-pods -j ACCEPT\n\
                        -A FORWARD -d 10.244.0.0/16 -m comment --comment mesh-pods -j ACCEPT\n";

    fn changes(listing: &str) -> Vec<String> {
        let planned = plan(listing, &["10.244.0.0/16".parse().unwrap()]);
        planned.iter().map(|words| words[2..].join(" ")).collect()
    }

    #[test]
    fn pods_are_accepted_where_somebody_drops() {
        let added = [
            "-I FORWARD -s 10.244.0.0/16 -m comment --comment mesh-pods -j ACCEPT",
            "-I FORWARD -d 10.244.0.0/16 -m comment --comment mesh-pods -j ACCEPT",
        ];
        let docker = "-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n";
        assert_eq!(changes(docker), added);
        assert_eq!(changes("-P FORWARD ACCEPT\n-A FORWARD -j ufw-before-forward\n"), added);
        assert!(changes(&format!("{docker}{OURS}")).is_empty(), "they are there");
        let kube = "-P FORWARD ACCEPT\n-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n";
        assert!(changes(kube).is_empty());
        assert!(changes("-P FORWARD ACCEPT\n").is_empty());
        assert!(changes(&format!("-P FORWARD ACCEPT\n{OURS}")).is_empty(), "ours stay until the end");
    }

    #[test]
    fn what_is_too_much_goes() {
        let old = OURS.replace("10.244", "10.42");
        let removed = changes(&format!("-P FORWARD DROP\n{OURS}{OURS}{old}"));
        assert_eq!(removed.len(), 4, "{removed:?}");
        assert!(removed.iter().all(|change| change.starts_with("-D FORWARD")));
        assert_eq!(plan_removal(&format!("-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n{OURS}")).len(), 2);
    }
}
