//! What the system says of its networks: its own commands and files, as they are.

use std::{process::Stdio, time::Duration};

use tokio::{fs, process::Command, time::timeout};

use super::Collection;

/// What is asked, and the file that takes the answer. A system has some of these commands and not others.
const COMMANDS: [(&str, &[&str]); 11] = [
    ("uname.txt", &["uname", "-a"]),
    ("links.txt", &["ip", "-details", "-statistics", "link"]),
    ("addresses.txt", &["ip", "address"]),
    ("routes-ipv4.txt", &["ip", "-4", "route", "show", "table", "all"]),
    ("routes-ipv6.txt", &["ip", "-6", "route", "show", "table", "all"]),
    ("rules-ipv4.txt", &["ip", "-4", "rule"]),
    ("rules-ipv6.txt", &["ip", "-6", "rule"]),
    ("nftables.txt", &["nft", "list", "ruleset"]),
    ("ifconfig.txt", &["ifconfig", "-a"]),
    ("netstat-routes.txt", &["netstat", "-rn"]),
    ("scutil-dns.txt", &["scutil", "--dns"]),
];
/// Files that are copied; `PID` stands for the agent's process.
const FILES: [(&str, &str); 9] = [
    ("resolv.conf", "/etc/resolv.conf"),
    ("snmp.txt", "/proc/net/snmp"),
    ("snmp6.txt", "/proc/net/snmp6"),
    ("softnet_stat.txt", "/proc/net/softnet_stat"),
    ("conntrack-count.txt", "/proc/sys/net/netfilter/nf_conntrack_count"),
    ("conntrack-max.txt", "/proc/sys/net/netfilter/nf_conntrack_max"),
    ("conntrack-stat.txt", "/proc/net/stat/nf_conntrack"),
    ("process-status.txt", "/proc/PID/status"),
    ("process-limits.txt", "/proc/PID/limits"),
];
/// A command that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer that is kept: far more than a node's tables.
const MAX_LEN: usize = 4 << 20;

/// Collects what the system says; what it does not have is left out in silence.
pub(super) async fn collect(pid: Option<u32>, collection: &mut Collection) {
    for (name, command) in COMMANDS {
        match ask(command).await {
            Ok(Some(text)) => collection.add(&format!("host/{name}"), cut(text)),
            Ok(None) => {}
            Err(error) => collection.missing.push(format!("host/{name}: {}: {error}", command.join(" "))),
        }
    }
    for (name, path) in FILES {
        let path = match (path.contains("PID"), pid) {
            (true, None) => continue,
            (true, Some(pid)) => path.replace("PID", &pid.to_string()),
            (false, _) => path.to_owned(),
        };
        if let Ok(text) = fs::read(&path).await {
            collection.add(&format!("host/{name}"), cut(text));
        }
    }
}

/// Returns what a command printed; `None` if there is no such command.
async fn ask(command: &[&str]) -> Result<Option<Vec<u8>>, String> {
    let [program, arguments @ ..] = command else { return Ok(None) };
    let mut asked = Command::new(program);
    asked.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    match timeout(PATIENCE, asked.output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(Some(output.stdout)),
        Ok(Ok(output)) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    }
}

fn cut(mut text: Vec<u8>) -> Vec<u8> {
    text.truncate(MAX_LEN);
    text
}
