//! Keeps a dynamic DNS name pointing here.
//!
//! The router's provider changes the outside address now and then, and only the name stays. One task tells the name's
//! keeper: at the start, every `REFRESH`, and at once when the outside address is seen to be another one. The keeper sees
//! for itself from which IPv4 address the request comes, so this works behind any router; this host's own IPv6 address
//! (`own`) is told to it, where that is wanted.
//!
//! ```text
//!            +-- done ------ wait REFRESH, or for another outside address
//! update ----+-- failed ---- wait, twice as long each time up to REFRESH
//!            +-- refused --- said loudly; wait REFRESH, twice as long each time up to REFUSED
//! ```
//!
//! [`duckdns`] is what one keeper wants to hear and how it answers. Another one is a file like it, and a line in
//! [`Provider`] and in what it is matched by. `fetch` is the HTTP below. The token is read from its file for each update,
//! so that it can be changed, and nothing that is logged or said shows it.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

pub mod duckdns;
mod fetch;
mod own;
#[cfg(test)]
mod tests;

pub use self::fetch::{Endpoint, InvalidEndpoint};

use self::{duckdns::DuckDns, fetch::Fetcher};

/// Between two updates when nothing changes: what DuckDNS asks for.
const REFRESH: Duration = Duration::from_secs(300);
/// Before the second try; it doubles up to [`REFRESH`].
const RETRY: Duration = Duration::from_secs(5);
/// Longest pause between refusals: mostly only a person can mend them, but a keeper in trouble refuses, too.
const REFUSED: Duration = Duration::from_secs(3600);
/// How often this host's own IPv6 address is looked at: nobody tells of it.
const LOOK: Duration = Duration::from_secs(30);
/// Least time between two updates: an outside address that flaps does not get this host banned.
const LEAST: Duration = Duration::from_secs(30);
/// Longest token file.
const MAX_TOKEN_FILE: usize = 1024;

/// Who keeps names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// See [`duckdns`].
    DuckDns,
}

/// Which IPv6 address a name leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ipv6 {
    /// Whatever it is now: a router may not let anybody in to this host's.
    #[default]
    Off,
    /// This host's, as long as it has one.
    Auto,
    /// This one.
    Address(Ipv6Addr),
}

/// What is to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DynDnsOptions {
    /// Who keeps it.
    pub provider: Provider,
    /// The name, without the keeper's domain.
    pub domain: String,
    /// Where the token is.
    pub token_file: PathBuf,
    /// Where the keeper is.
    pub endpoint: Endpoint,
    /// Which IPv6 address it leads to.
    pub ipv6: Ipv6,
}

/// What the keeper has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Updated {
    /// Where the name leads now over IPv4, if it said so.
    pub ipv4: Option<Ipv4Addr>,
    /// And over IPv6.
    pub ipv6: Option<Ipv6Addr>,
    /// Whether that is news.
    pub changed: bool,
}

/// Why the name was not updated.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The token cannot be read.
    #[error("{}: {reason}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The keeper does not take it: the name or the token is wrong.
    #[error("the name or the token is refused")]
    Refused,
    /// The keeper was not reached, or made no sense.
    #[error("{0}")]
    Failed(String),
}

/// What is wanted of a name's IPv6 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// It stays as it is.
    Any,
    /// There is none.
    None,
    /// It is this one.
    At(Ipv6Addr),
}

/// The right to change a name; its `Debug` shows nothing.
struct Token(Zeroizing<String>);

/// Asks a keeper.
trait Ask {
    /// Asks with a query, and returns the answer. What is wrong is a clause for people, without the query.
    async fn get(&self, query: &str) -> Result<String, String>;
}

impl FromStr for Ipv6 {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("off", _) => Ok(Self::Off),
            ("auto", _) => Ok(Self::Auto),
            (_, Ok(address)) if own::is_global(address) => Ok(Self::Address(address)),
            _ => Err(format!("{text:?} is neither auto nor off, nor an IPv6 address of the internet")),
        }
    }
}

impl Ipv6 {
    fn wanted(self) -> Wanted {
        match self {
            Self::Off => Wanted::Any,
            Self::Auto => own::ipv6().map_or(Wanted::None, Wanted::At),
            Self::Address(address) => Wanted::At(address),
        }
    }
}

impl Token {
    fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl UpdateError {
    /// Whether, mostly, only a person can mend it.
    fn is_lasting(&self) -> bool {
        match self {
            Self::Token { .. } | Self::Refused => true,
            Self::Failed(_) => false,
        }
    }
}

/// Keeps a name until cancelled. `outside` is this site's outside address as far as somebody has seen it.
///
/// # Errors
/// When the system has nothing to trust the keeper by.
pub async fn keep(
    options: DynDnsOptions,
    outside: watch::Receiver<Option<IpAddr>>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let ipv6 = options.ipv6;
    let keeper = Arc::new(Keeper { fetcher: Fetcher::new(&options.endpoint)?, options });
    let update = || {
        let keeper = Arc::clone(&keeper);
        async move { keeper.update().await }
    };
    tokio::select! {
        biased;
        () = cancel.cancelled() => {}
        () = keep_by(update, outside, || ipv6.wanted()) => {}
    }
    Ok(())
}

/// Calls `update` again and again, and sooner when the outside address or what is `wanted` becomes another one.
async fn keep_by<F>(
    update: impl Fn() -> F,
    mut outside: watch::Receiver<Option<IpAddr>>,
    wanted: impl Fn() -> Wanted,
) where
    F: Future<Output = Result<Updated, UpdateError>>,
{
    let (mut retry, mut refused) = (RETRY, REFRESH);
    loop {
        outside.mark_unchanged();
        let before = wanted();
        let pause = match update().await {
            Ok(updated) => {
                if updated.changed {
                    tracing::info!("the dynamic DNS name points to another address now");
                }
                tracing::debug!(ipv4 = ?updated.ipv4, ipv6 = ?updated.ipv6, "the dynamic DNS name is up to date");
                (retry, refused) = (RETRY, REFRESH);
                REFRESH
            }
            Err(error) if error.is_lasting() => {
                let pause = refused;
                tracing::error!(%error, again_s = pause.as_secs(), "the dynamic DNS name is not kept");
                refused = (refused * 2).min(REFUSED);
                pause
            }
            Err(error) => {
                let pause = retry;
                tracing::warn!(%error, again_s = pause.as_secs(), "the dynamic DNS name was not updated");
                retry = (retry * 2).min(REFRESH);
                pause
            }
        };
        let until = Instant::now() + pause;
        tokio::time::sleep(LEAST.min(pause)).await;
        while Instant::now() < until {
            tokio::select! {
                biased;
                Ok(()) = outside.changed() => {
                    tracing::debug!("the outside address changed");
                    break;
                }
                () = tokio::time::sleep_until(until.min(Instant::now() + LOOK)) => {}
            }
            if wanted() != before {
                tracing::debug!("this host has another IPv6 address");
                break;
            }
        }
    }
}

struct Keeper {
    fetcher: Fetcher,
    options: DynDnsOptions,
}

impl Keeper {
    async fn update(&self) -> Result<Updated, UpdateError> {
        let Self { fetcher, options } = self;
        let token = &self.token().await?;
        match options.provider {
            Provider::DuckDns => {
                DuckDns { domain: &options.domain, token }.update(fetcher, options.ipv6.wanted()).await
            }
        }
    }

    async fn token(&self) -> Result<Token, UpdateError> {
        let path = &self.options.token_file;
        let wrong = |reason: &str| UpdateError::Token { path: path.clone(), reason: reason.to_owned() };
        let bytes = Zeroizing::new(tokio::fs::read(path).await.map_err(|error| wrong(&error.to_string()))?);
        let text = std::str::from_utf8(&bytes).ok().filter(|text| text.len() <= MAX_TOKEN_FILE);
        let token = text.ok_or_else(|| wrong("it holds no token"))?.trim();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(wrong("it holds no token"));
        }
        Ok(Token(Zeroizing::new(token.to_owned())))
    }
}
