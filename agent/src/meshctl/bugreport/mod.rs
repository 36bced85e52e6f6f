//! `meshctl bugreport`: one archive that a person can attach to a ticket.
//!
//! | file | content |
//! |---|---|
//! | `README.txt` | what this is, and what could not be found out |
//! | `status.json`, `netcheck.json` | as `meshctl status --json` and `meshctl netcheck --json` print them |
//! | `why/NODE.json` | as `meshctl why NODE --json` prints it, with the latest changes of path, for each peer |
//! | `agent.json` | the agent's version, start, process, state directory and network map |
//! | `config.txt` | what the agent was told |
//! | `logs.txt` | the agent's log of the last hour |
//! | `host/…` | interfaces, addresses, routes, rules, packet filter, resolver, the process's limits and memory |
//!
//! The agent gives no secret to anybody, and neither its state directory nor the service's files are read here. The
//! archive names addresses and nodes, so it is readable by its owner alone.

mod archive;
mod host;

use std::{io, path::PathBuf};

use mesh_proto::status::Status;
use serde::Serialize;
use time::{OffsetDateTime, macros::format_description};

use super::{CommandError, Outcome, print_text};
use crate::local_api::{Client, ClientError};
use archive::Archive;

/// What gets into the archive, and what does not.
#[derive(Default)]
struct Collection {
    /// Names and contents.
    files: Vec<(String, Vec<u8>)>,
    /// What could not be had, and why.
    missing: Vec<String>,
}

/// Writes the archive, and prints where it is. That an agent does not answer is a problem to be reported, too.
pub(super) async fn run(client: &Client, output: Option<PathBuf>) -> Result<Outcome, CommandError> {
    let now = OffsetDateTime::now_utc();
    let mut collection = Collection::default();
    let status = client.status().await;
    let path = output.unwrap_or_else(|| default_path(status.as_ref().ok(), now));
    // A place that cannot be written to is told at once.
    let archive = Archive::create(&path, now)?;

    let peers = status.as_ref().map_or_else(|_| Vec::new(), |status| status.peers.clone());
    collection.add_answer("status.json", status);
    for peer in peers {
        let why = client.why(&peer.name).await;
        collection.add_answer(&format!("why/{}.json", peer.name), why);
    }
    collection.add_answer("netcheck.json", client.netcheck().await);
    let mut pid = None;
    match client.report().await {
        Ok(mut report) => {
            pid = Some(report.pid);
            collection.add("logs.txt", std::mem::take(&mut report.logs));
            collection.add("config.txt", std::mem::take(&mut report.config));
            collection.add_answer("agent.json", Ok(report));
        }
        Err(error) => collection.missing.push(format!("agent.json, logs.txt, config.txt: {error}")),
    }
    host::collect(pid, &mut collection).await;
    for missing in &collection.missing {
        eprintln!("meshctl: not in the report: {missing}");
    }
    collection.add("README.txt", collection.readme());

    archive.write(collection.files)?;
    print_text(&format!("{}\n", path.display()))?;
    Ok(Outcome::Done)
}

impl Collection {
    fn add(&mut self, name: &str, content: impl Into<Vec<u8>>) {
        self.files.push((name.to_owned(), content.into()));
    }

    fn add_answer(&mut self, name: &str, answer: Result<impl Serialize, ClientError>) {
        let text = answer
            .map_err(|error| error.to_string())
            .and_then(|answer| serde_json::to_vec_pretty(&answer).map_err(|error| error.to_string()));
        match text {
            Ok(text) => self.add(name, text),
            Err(error) => self.missing.push(format!("{name}: {error}")),
        }
    }

    fn readme(&self) -> String {
        let mut text = format!(
            "A report of `meshctl bugreport`, version {}.\n\nIt holds names and addresses of nodes and networks, and \
             no keys, tokens or passwords.\nmeshctl's own documents are JSON; host/ is what the system's commands \
             printed.\n",
            env!("CARGO_PKG_VERSION"),
        );
        if !self.missing.is_empty() {
            text.push_str("\nNot in it:\n");
        }
        for missing in &self.missing {
            text.push_str("- ");
            text.push_str(missing);
            text.push('\n');
        }
        text
    }
}

fn default_path(status: Option<&Status>, now: OffsetDateTime) -> PathBuf {
    let node = status.map_or("unknown", |status| status.this.name.as_str());
    let form = format_description!("[year][month][day]T[hour][minute][second]Z");
    let at = now.format(form).unwrap_or_else(|_| now.unix_timestamp().to_string());
    PathBuf::from(format!("mesh-bugreport-{node}-{at}.tar.gz"))
}

impl From<archive::ArchiveError> for CommandError {
    fn from(error: archive::ArchiveError) -> Self {
        Self::Output(io::Error::other(error))
    }
}
