//! Asks name servers: each by itself, half a second apart, until one has an address.
//!
//! Both families are asked for at once. Once one has an address the other is waited for only shortly: some servers
//! never answer a question for IPv6. Everything is made anew for each question, so nothing outlives a network.

use std::{io, net::SocketAddr, pin::Pin, time::Duration};

use futures_util::{
    StreamExt,
    future::{Either, select},
    stream::FuturesUnordered,
};
use hickory_resolver::{
    Resolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig},
    lookup::Lookup,
    net::{DnsError, NetError},
    proto::rr::{Name, RecordType},
};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    Answer, Question, Wanted,
    underlay::{ThroughMesh, Underlay},
};

/// Head start of each server before the next one.
const STAGGER: Duration = Duration::from_millis(500);
/// A server has this long; a question is sent again within.
const SERVER_PATIENCE: Duration = Duration::from_secs(5);
/// The other family has this long once one has an address.
const FAMILY_PATIENCE: Duration = Duration::from_millis(500);

/// Why no server has an address.
#[derive(Debug, Default)]
pub(super) struct Failure {
    /// One says that there is none, and perhaps for how long.
    pub(super) not_found: Option<Option<Duration>>,
    /// One fails, and says how.
    pub(super) failing: Option<String>,
    /// The way to one leads through the mesh: it was not asked.
    pub(super) is_through_mesh: bool,
    /// One says nothing.
    pub(super) is_silent: bool,
}

type Asking<'a> = Pin<Box<dyn Future<Output = Result<Answer, Failure>> + Send + 'a>>;

/// Asks these for a name; one without a dot is looked for in the search domains.
pub(super) async fn ask(
    servers: &[SocketAddr],
    search: &[String],
    question: Question<'_>,
) -> Result<Answer, Failure> {
    let mut waiting = servers.iter();
    let mut asking: FuturesUnordered<Asking<'_>> = FuturesUnordered::new();
    let mut failure = Failure::default();
    let mut next = Instant::now();
    loop {
        if Instant::now() >= next
            && let Some(server) = waiting.next()
        {
            asking.push(Box::pin(ask_one(*server, search, question)));
            next = Instant::now() + STAGGER;
        }
        tokio::select! {
            biased;
            Some(answered) = asking.next() => match answered {
                Ok(answer) => return Ok(answer),
                Err(other) => {
                    failure.append(other);
                    next = Instant::now();
                    if asking.is_empty() && waiting.len() == 0 {
                        return Err(failure);
                    }
                }
            },
            () = sleep_until(next), if waiting.len() > 0 => {}
            else => return Err(failure),
        }
    }
}

/// Asks one server, for both families if any will do.
async fn ask_one(server: SocketAddr, search: &[String], question: Question<'_>) -> Result<Answer, Failure> {
    let Question { host, wanted, mesh } = question;
    let name = if host.contains('.') { format!("{}.", host.trim_end_matches('.')) } else { host.to_owned() };
    let Ok(name) = Name::from_ascii(name) else {
        return Err(Failure { not_found: Some(None), ..Failure::default() });
    };
    let underlay = Underlay::new(server, mesh.into());
    // The library does not tell why there is no socket.
    underlay.connect(underlay.any()).await.map_err(Failure::of_socket)?;
    let resolver = resolver(underlay, search).map_err(Failure::from)?;
    if wanted == Wanted::V6 {
        let found = Found::try_from(resolver.lookup(name, RecordType::AAAA).await)?;
        return Ok(found.0);
    }
    let [v6, v4] =
        [RecordType::AAAA, RecordType::A].map(|kind| Box::pin(resolver.lookup(name.clone(), kind)));
    let (first, second) = match select(v6, v4).await {
        Either::Left((v6, v4)) => (v6, Either::Left(v4)),
        Either::Right((v4, v6)) => (v4, Either::Right(v6)),
    };
    let first = Found::try_from(first);
    let patience = if first.is_ok() { FAMILY_PATIENCE } else { SERVER_PATIENCE };
    let second = tokio::select! {
        biased;
        second = second => Found::try_from(second),
        () = sleep(patience) => Err(Failure { is_silent: true, ..Failure::default() }),
    };
    match (first, second) {
        (Ok(Found(first)), Ok(Found(second))) => {
            let mut addresses = [first.addresses, second.addresses].concat();
            addresses.sort_by_key(std::net::IpAddr::is_ipv4);
            Ok(Answer { addresses, ttl: first.ttl.min(second.ttl) })
        }
        (Ok(Found(answer)), Err(_)) | (Err(_), Ok(Found(answer))) => Ok(answer),
        (Err(mut first), Err(second)) => {
            first.append(second);
            Err(first)
        }
    }
}

fn resolver(underlay: Underlay, search: &[String]) -> Result<Resolver<Underlay>, NetError> {
    let server = underlay.server();
    let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
    connections.iter_mut().for_each(|connection| connection.port = server.port());
    let servers = vec![NameServerConfig::new(server.ip(), true, connections)];
    let search = search.iter().filter_map(|domain| Name::from_ascii(domain).ok()).collect();
    let config = ResolverConfig::from_parts(None, search, servers);
    let mut builder = Resolver::builder_with_config(config, underlay);
    let options = builder.options_mut();
    options.timeout = SERVER_PATIENCE;
    // It sends a question again by itself, and whoever asks tries again.
    options.attempts = 0;
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    // A port of the library's own choice may be one that a service of this host is about to use.
    options.os_port_selection = true;
    // As plain as the C library asks: some home routers answer no other question, or change its case. Who lies is found out
    // by other means.
    options.edns0 = false;
    options.case_randomization = false;
    builder.build()
}

/// Addresses of one family.
struct Found(Answer);

impl Found {
    fn try_from(lookup: Result<Lookup, NetError>) -> Result<Self, Failure> {
        let lookup = lookup.map_err(Failure::from)?;
        let addresses: Vec<_> = lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect();
        // That of an alias counts, too.
        let ttl = lookup.answers().iter().map(|record| record.ttl).min().unwrap_or_default();
        if addresses.is_empty() {
            return Err(Failure { not_found: Some(None), ..Failure::default() });
        }
        Ok(Self(Answer { addresses, ttl: Duration::from_secs(ttl.into()) }))
    }
}

impl Failure {
    fn of_socket(error: io::Error) -> Self {
        let is_through_mesh = error.get_ref().is_some_and(|inner| inner.is::<ThroughMesh>());
        Self { is_through_mesh, is_silent: !is_through_mesh, ..Self::default() }
    }

    fn append(&mut self, other: Self) {
        self.not_found = self.not_found.or(other.not_found);
        self.failing = self.failing.take().or(other.failing);
        self.is_through_mesh |= other.is_through_mesh;
        self.is_silent |= other.is_silent;
    }
}

impl From<NetError> for Failure {
    fn from(error: NetError) -> Self {
        let none = Self::default();
        match error {
            NetError::Dns(DnsError::NoRecordsFound(records)) => {
                let ttl = records.negative_ttl.map(|seconds| Duration::from_secs(seconds.into()));
                Self { not_found: Some(ttl), ..none }
            }
            // Nobody is there, or no way leads there.
            NetError::Timeout | NetError::NoConnections | NetError::Io(_) => Self { is_silent: true, ..none },
            other => Self { failing: Some(other.to_string()), ..none },
        }
    }
}
