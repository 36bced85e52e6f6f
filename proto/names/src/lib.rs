//! What names of the underlay lead to, and for how long.
//!
//! The mesh's programs ask the name servers in `/etc/resolv.conf` themselves, so that they learn how long an answer holds,
//! and so that a question never leaves through the mesh: the mesh cannot be what leads to the coordinator that it is made by.
//!
//! ```text
//! /etc/hosts -- there ------------------------------------------------------------> answer
//!     |
//!     +-- NAME.local --> the system (multicast DNS is its business) --------------> answer
//!     |
//!     +-- name servers, 500 ms apart, over the underlay alone -- an address ------> answer
//!              |                                                                      ^
//!              +-- none has one --> the system, where it has sources of its own ------+
//! ```
//!
//! The files are read for every question, and again while it is under way, for after a change of network they follow late.
//! The first server that has an address is believed: a server that says that there is no such name, that fails or that
//! is dead costs half a second and no more. A server with an address in the mesh's ranges is passed over, and so is one
//! to which the system's routes lead through the mesh. Whether an answer is true is not decided here: the pinned key of
//! whoever is there decides, so a captive portal's lies cost a moment.

#[cfg(test)]
mod fake;
mod servers;
mod system;
#[cfg(test)]
mod tests;
mod underlay;

use std::{io, net::IpAddr, time::Duration};

use ipnet::IpNet;
use tokio::time::timeout;

use servers::Failure;
use system::{Files, System};

/// A lookup that has not ended by then is left; its answer is worth nothing to whoever wants to connect. Time for three
/// servers that don't answer and for the system.
const PATIENCE: Duration = Duration::from_secs(12);
/// How often the files are looked at while a question is under way.
const FILES_INTERVAL: Duration = Duration::from_millis(500);
/// How long holds what a person has written down, and what comes from the system, which does not say.
const UNDATED: Duration = Duration::from_secs(30);

/// What a name leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The addresses, IPv6 first.
    pub addresses: Vec<IpAddr>,
    /// The time to live.
    pub ttl: Duration,
}

/// Why a name leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// The name servers say so.
    #[error("there is no such name, or no address for it")]
    NotFound {
        /// How long that holds, if they said it.
        ttl: Option<Duration>,
    },
    /// None of them answers.
    #[error("no name server answers")]
    Silent,
    /// They answer, but with a failure of theirs.
    #[error("the name servers fail: {0}")]
    Failing(String),
    /// All are inside the mesh.
    #[error("there is no name server outside the mesh")]
    NoServer,
    /// The system, which was asked, too.
    #[error("{0}")]
    System(io::Error),
}

/// Asks what a name leads to, outside these ranges of the mesh.
///
/// # Errors
/// When nobody who was asked knows an address.
pub async fn lookup(host: &str, mesh: &[IpNet]) -> Result<Answer, NameError> {
    lookup_in(&Files::default(), Question { host, wanted: Wanted::Any, mesh }).await
}

/// As [`lookup`], for IPv6 addresses alone: a name server that has none is not the last one to be asked.
///
/// # Errors
/// When nobody who was asked knows an IPv6 address.
pub async fn lookup_v6(host: &str, mesh: &[IpNet]) -> Result<Answer, NameError> {
    lookup_in(&Files::default(), Question { host, wanted: Wanted::V6, mesh }).await
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
struct Question<'a> {
    host: &'a str,
    wanted: Wanted,
    /// Nobody is asked in these ranges.
    mesh: &'a [IpNet],
}

/// Which addresses are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Any,
    V6,
}

impl Wanted {
    fn has(self, ip: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::V6 => ip.is_ipv6(),
        }
    }
}

async fn lookup_in(files: &Files, question: Question<'_>) -> Result<Answer, NameError> {
    let work = async {
        let mut system = files.read();
        loop {
            tokio::select! {
                biased;
                answer = ask(&system, question) => return answer,
                changed = changed(files, &system) => system = changed,
            }
        }
    };
    timeout(PATIENCE, work).await.unwrap_or(Err(NameError::Silent))
}

/// Waits until the files say something else.
async fn changed(files: &Files, known: &System) -> System {
    loop {
        tokio::time::sleep(FILES_INTERVAL).await;
        let system = files.read();
        if system != *known {
            return system;
        }
    }
}

async fn ask(system: &System, question: Question<'_>) -> Result<Answer, NameError> {
    let Question { host, wanted, mesh } = question;
    let mut written = system.written(host);
    written.retain(|ip| wanted.has(*ip));
    if !written.is_empty() {
        return Ok(Answer { addresses: written, ttl: UNDATED });
    }
    if system::is_local(host) {
        return ask_system(host, wanted).await;
    }
    let usable = system.servers(mesh);
    if usable.is_empty() {
        return Err(NameError::NoServer);
    }
    let failure = match servers::ask(&usable, system.search(), question).await {
        Ok(answer) => return Ok(answer),
        Err(failure) => failure,
    };
    // The system would ask whoever was passed over here.
    let is_whole = usable.len() == system.server_count() && !failure.is_through_mesh;
    if is_whole
        && system.has_other_sources()
        && let Ok(answer) = ask_system(host, wanted).await
    {
        return Ok(answer);
    }
    Err(failure.into())
}

async fn ask_system(host: &str, wanted: Wanted) -> Result<Answer, NameError> {
    // Any port: it is asked for with the name, and nothing is done with it.
    let found = tokio::net::lookup_host((host, 1)).await.map_err(NameError::System)?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in found {
        if wanted.has(address.ip()) && !addresses.contains(&address.ip()) {
            addresses.push(address.ip());
        }
    }
    if addresses.is_empty() {
        return Err(NameError::NotFound { ttl: None });
    }
    Ok(Answer { addresses, ttl: UNDATED })
}

impl From<Failure> for NameError {
    fn from(failure: Failure) -> Self {
        let Failure { not_found, failing, is_through_mesh, is_silent } = failure;
        match (not_found, failing) {
            (Some(ttl), _) => Self::NotFound { ttl },
            (None, Some(failing)) => Self::Failing(failing),
            (None, None) if is_through_mesh && !is_silent => Self::NoServer,
            (None, None) => Self::Silent,
        }
    }
}
