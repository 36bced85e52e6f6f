//! Changing a village in the background: one request a connection, a line of JSON each way.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::Subcommand;
use serde::{Deserialize, Serialize};

use super::Village;
use crate::linksim::{Impairment, Line, LineStats, Loss};
use crate::nat::Egress;

/// How long a client is listened to, and an answer waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// What can be changed, and seen, from outside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Subcommand)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Cuts a site off from the internet
    Cut {
        /// The site
        site: String,
    },
    /// Connects a site again
    Mend {
        /// The site
        site: String,
    },
    /// Sets delay and loss of a site's access line, each way
    Line {
        /// The site
        site: String,
        /// Milliseconds each way
        #[arg(long)]
        delay: Option<u64>,
        /// Milliseconds by which the delay varies up and down
        #[arg(long)]
        jitter: Option<u64>,
        /// Percent of the packets lost each way
        #[arg(long)]
        loss: Option<f64>,
    },
    /// Sets what a site lets out
    Egress {
        /// The site
        site: String,
        /// open, no-udp or only-tcp443
        #[arg(value_parser = parse_egress)]
        egress: Egress,
    },
    /// Makes a site's router forget all its mappings
    Reboot {
        /// The site
        site: String,
    },
    /// Moves a host to the LAN of another site
    Roam {
        /// The host
        host: String,
        /// The site
        site: String,
    },
    /// Gives the home of `pi` another public address; its DuckDNS name follows
    MoveHome {
        /// The address
        address: Ipv4Addr,
    },
    /// Kills a node's agent, or the coordinator, with SIGKILL
    Kill {
        /// A node, or `coordinator`
        name: String,
    },
    /// Starts a node's agent, or the coordinator, again
    Start {
        /// A node, or `coordinator`
        name: String,
    },
    /// Prints what a site's access line has carried and dropped
    Stats {
        /// The site
        site: String,
    },
}

/// The answer: statistics if asked for, or what went wrong.
type Answer = Result<Option<LineStats>, String>;

/// Sends a request to the village whose control socket this is.
///
/// # Errors
///
/// If it does not answer, or refuses.
pub fn ask(socket: &Path, request: &Request) -> anyhow::Result<Option<LineStats>> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("control socket {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    serde_json::to_writer(&stream, request)?;
    stream.write_all(b"\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let answer: Answer = serde_json::from_str(&line).context("the village does not answer")?;
    answer.map_err(|error| anyhow!(error))
}

/// Answers requests until the process ends.
///
/// # Errors
///
/// If the socket cannot be made.
pub(super) fn serve(socket: &Path, village: &Village) -> anyhow::Result<()> {
    let _ = std::fs::remove_file(socket);
    let listener =
        UnixListener::bind(socket).with_context(|| format!("control socket {}", socket.display()))?;
    for stream in listener.incoming() {
        if let Err(error) =
            stream.map_err(anyhow::Error::from).and_then(|stream| handle_client(&stream, village))
        {
            tracing::warn!(%error, "a client of the control socket was not served");
        }
    }
    Ok(())
}

fn handle_client(stream: &UnixStream, village: &Village) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let answer: Answer = serde_json::from_str(&line)
        .map_err(anyhow::Error::from)
        .and_then(|request| apply(&request, village))
        .map_err(|error| format!("{error:#}"));
    let mut stream = stream;
    serde_json::to_writer(stream, &answer)?;
    Ok(stream.write_all(b"\n")?)
}

fn apply(request: &Request, village: &Village) -> anyhow::Result<Option<LineStats>> {
    let network = village.network();
    let daemon = |name: &str| match name {
        "coordinator" => Ok(village.coordinator()),
        node => village.node(node).map(|node| node.agent()),
    };
    match request {
        Request::Cut { site } => network.set_connected(site, false)?,
        Request::Mend { site } => network.set_connected(site, true)?,
        Request::Line { site, delay, jitter, loss } => {
            let change = |old: Impairment| Impairment {
                delay: delay.map_or(old.delay, Duration::from_millis),
                jitter: jitter.map_or(old.jitter, Duration::from_millis),
                loss: loss.map_or(old.loss, |percent| Loss::Uniform(percent / 100.0)),
                ..old
            };
            let Line { up, down } = network.line(site)?;
            network.set_line(site, Line { up: change(up), down: change(down) })?;
        }
        Request::Egress { site, egress } => network.set_egress(site, *egress)?,
        Request::Reboot { site } => network.reboot(site)?,
        Request::Roam { host, site } => network.move_host(host, site)?,
        Request::MoveHome { address } => village.move_home(*address)?,
        Request::Kill { name } => daemon(name)?.kill(nix::sys::signal::Signal::SIGKILL)?,
        Request::Start { name } => daemon(name)?.start()?,
        Request::Stats { site } => return network.stats(site).map(Some),
    }
    Ok(None)
}

fn parse_egress(text: &str) -> Result<Egress, String> {
    let value = serde_json::Value::String(text.to_owned());
    serde_json::from_value(value).map_err(|_| "one of open, no-udp, only-tcp443".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn egress_is_read_in_every_form() {
        let all = [("open", Egress::Open), ("no-udp", Egress::NoUdp), ("only-tcp443", Egress::OnlyTcp443)];
        for (text, egress) in all {
            assert_eq!(parse_egress(text), Ok(egress));
        }
        assert!(parse_egress("none").is_err());
    }
}
