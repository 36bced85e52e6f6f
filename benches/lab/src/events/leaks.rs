//! What a village uses of its machine, so that a beginning and a later moment can be compared.
//!
//! No bound knows how many events there were: what grows by one a day fails in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context as _;

use crate::mesh::{Before, Daemon};
use crate::village::Village;

/// File descriptors that a daemon may have more than at the beginning: sockets of attempts that run.
const FDS: u64 = 24;
/// Threads: those that resolve a name, or write a file, live for ten seconds.
const THREADS: u64 = 6;
/// Memory, in KiB: what an allocator keeps after a burst.
const RSS_KIB: u64 = 24 * 1024;
/// Files in a state directory: those that are being replaced.
const FILES: u64 = 8;
/// Bytes in a state directory: a write-ahead log that waits for its checkpoint.
const BYTES: u64 = 8 * 1024 * 1024;
/// Connections that a NAT tracks at most: within the life of a mapping, two attempts of 4,096 probes with each of four
/// peers.
const CONNTRACK: u64 = 2 * 4 * 4096;

/// What is used at a moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Usage {
    daemons: BTreeMap<String, Process>,
    /// Interfaces, addresses, routes, rules and filters that were not there before the mesh, by host.
    network: BTreeSet<String>,
    /// Tracked connections, by site.
    conntrack: BTreeMap<String, u64>,
    /// Files and their bytes, by state directory.
    files: BTreeMap<String, (u64, u64)>,
}

/// What a daemon uses.
#[derive(Debug, Clone, Copy, Default)]
struct Process {
    fds: u64,
    threads: u64,
    rss_kib: u64,
}

impl Usage {
    /// Looks at everything.
    ///
    /// # Errors
    ///
    /// If the tools that show it cannot be run.
    pub(super) fn look(village: &Village, relay: &Daemon, before: &Before) -> anyhow::Result<Self> {
        let mut usage = Self::default();
        for daemon in village.daemons().into_iter().chain([relay]) {
            // Who is dead uses nothing.
            if let Some(pid) = daemon.pid() {
                usage.daemons.insert(daemon.name().to_owned(), Process::of(pid)?);
            }
        }
        usage.network.extend(village.leftovers(before)?.iter().filter_map(|line| lasting(line)));
        let network = village.network();
        for site in &network.topology().sites {
            if let Ok(router) = network.router(&site.name) {
                let count = router
                    .enter(|| std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count"))??;
                usage.conntrack.insert(site.name.clone(), count.trim().parse()?);
            }
        }
        let directories = village.nodes().map(|node| (node.name().to_owned(), node.state_dir()));
        for (name, directory) in
            directories.chain([("coordinator".to_owned(), village.coordinator_dir().clone())])
        {
            usage.files.insert(name, count_files(&directory));
        }
        Ok(usage)
    }

    /// What is beyond its bounds, held against the beginning; what should be there and is not, too.
    pub(super) fn beyond(&self, beginning: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut check = |what: String, is: u64, most: u64| {
            if is > most {
                found.push(format!("{what}: {is}, at most {most}"));
            }
        };
        for (name, is) in &self.daemons {
            let was = beginning.daemons.get(name).copied().unwrap_or_default();
            check(format!("file descriptors of {name}"), is.fds, was.fds + FDS);
            check(format!("threads of {name}"), is.threads, was.threads + THREADS);
            check(format!("KiB of {name}"), is.rss_kib, was.rss_kib + RSS_KIB);
        }
        for (site, is) in &self.conntrack {
            check(format!("connections that {site} tracks"), *is, CONNTRACK);
        }
        for (name, (files, bytes)) in &self.files {
            let (had, were) = beginning.files.get(name).copied().unwrap_or_default();
            check(format!("state files of {name}"), *files, had + FILES);
            check(format!("bytes of state of {name}"), *bytes, were + BYTES);
        }
        found.extend(self.network.difference(&beginning.network).map(|line| format!("left behind: {line}")));
        found.extend(beginning.network.difference(&self.network).map(|line| format!("gone: {line}")));
        found
    }

    /// The largest of everything, in one line.
    pub(super) fn summary(&self) -> String {
        let most = |of: fn(&Process) -> u64| self.daemons.values().map(of).max().unwrap_or_default();
        let conntrack = self.conntrack.values().max().copied().unwrap_or_default();
        let (files, bytes) =
            self.files.values().fold((0, 0), |(files, bytes), (more, size)| (files + more, bytes + size));
        format!(
            "at most {} fds, {} threads, {} KiB in a daemon; {conntrack} connections in a NAT; {files} state files of {bytes} bytes; \
             {} entries of network state",
            most(|of| of.fds),
            most(|of| of.threads),
            most(|of| of.rss_kib),
            self.network.len()
        )
    }
}

impl Process {
    fn of(pid: i32) -> anyhow::Result<Self> {
        let entries = |of: &str| -> anyhow::Result<u64> {
            Ok(std::fs::read_dir(format!("/proc/{pid}/{of}"))?.count() as u64)
        };
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let rss_kib = rss.trim().trim_end_matches(" kB").parse()?;
        Ok(Self { fds: entries("fd")?, threads: entries("task")?, rss_kib })
    }
}

/// A line of a footprint in words that do not change when an agent is started again; none for what comes and goes with
/// places, processes and sockets.
fn lasting(line: &str) -> Option<String> {
    let (host, what) = line.split_once(": ")?;
    let (kind, rest) = what.split_once(' ')?;
    if line.contains("eth0") || ["process", "socket"].contains(&kind) {
        return None;
    }
    // Interfaces have numbers that are not given again.
    let rest = match rest.split_once(": ") {
        Some((number, rest)) if number.parse::<u32>().is_ok() => rest,
        _ => rest,
    };
    Some(format!("{host}: {kind} {rest}"))
}

/// Files below a directory, and their bytes.
fn count_files(directory: &Path) -> (u64, u64) {
    let Ok(entries) = std::fs::read_dir(directory) else { return (0, 0) };
    entries.flatten().fold((0, 0), |(files, bytes), entry| match entry.metadata() {
        Ok(data) if data.is_dir() => {
            let (more, size) = count_files(&entry.path());
            (files + more, bytes + size)
        }
        Ok(data) => (files + 1, bytes + data.len()),
        // It has just been replaced.
        Err(_) => (files, bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_named_without_numbers() {
        let of = |line| lasting(line);
        assert_eq!(of("pi: link 7: mesh0: <UP> mtu 1420"), Some("pi: link mesh0: <UP> mtu 1420".into()));
        assert_eq!(of("pi: route4 10.90.0.0/16 dev mesh0"), Some("pi: route4 10.90.0.0/16 dev mesh0".into()));
        assert_eq!(of("pi: address 3: eth0 inet 192.168.1.10/24"), None);
        assert_eq!(of("pi: process 77 mesh-agent"), None);
    }

    #[test]
    fn what_is_left_and_what_is_gone_is_told() {
        let with = |lines: &[&str]| Usage {
            network: lines.iter().map(|&line| line.to_owned()).collect(),
            ..Usage::default()
        };
        let beyond = with(&["a", "c"]).beyond(&with(&["a", "b"]));
        assert_eq!(beyond, ["left behind: c", "gone: b"]);
    }
}
