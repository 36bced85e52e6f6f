//! Keeps a dynamic DNS name pointing here.
//!
//! The router's provider changes the outside address now and then, and only the name stays. One task tells the name's
//! keeper: at the start, every `REFRESH`, and at once when the outside address is seen to be another one. The keeper sees
//! for itself where the request comes from, so this works behind any router.
//!
//! ```text
//!            +-- done ------ wait REFRESH, or for another outside address
//! update ----+-- failed ---- wait, twice as long each time up to REFRESH
//!            +-- refused --- said loudly, tried again every REFUSED
//! ```
//!
//! [`duckdns`] is what one keeper wants to hear and how it answers; another one is a file like it. `fetch` is the HTTP
//! below. The token is read from its file for each update, so that it can be changed, and no log and no error shows it.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

pub mod duckdns;
mod fetch;
#[cfg(test)]
mod tests;

pub use self::fetch::{Endpoint, InvalidEndpoint};

use self::{duckdns::DuckDns, fetch::Fetcher};

/// Between two updates when nothing changes: what DuckDNS asks for.
const REFRESH: Duration = Duration::from_secs(300);
/// Before the second try; it doubles up to [`REFRESH`].
const RETRY: Duration = Duration::from_secs(5);
/// After a refusal, which only a person can mend.
const REFUSED: Duration = Duration::from_secs(3600);
/// Least time between two updates: an outside address that flaps does not get this host banned.
const LEAST: Duration = Duration::from_secs(30);
/// Longest token file.
const MAX_TOKEN_FILE: usize = 1024;

/// What is to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DynDnsOptions {
    /// The name, without the keeper's domain.
    pub domain: String,
    /// Where the token is.
    pub token_file: PathBuf,
    /// Where the keeper is.
    pub endpoint: Endpoint,
}

/// What the keeper has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Updated {
    /// Where the name points now, if it said so.
    pub addresses: Vec<IpAddr>,
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

impl UpdateError {
    /// Whether only a person can mend it.
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
    let keeper = Arc::new(Keeper { fetcher: Fetcher::new(&options.endpoint)?, options });
    let update = || {
        let keeper = Arc::clone(&keeper);
        async move { keeper.update().await }
    };
    tokio::select! {
        biased;
        () = cancel.cancelled() => {}
        () = keep_by(update, outside) => {}
    }
    Ok(())
}

/// Calls `update` again and again.
async fn keep_by<F>(update: impl Fn() -> F, mut outside: watch::Receiver<Option<IpAddr>>)
where
    F: Future<Output = Result<Updated, UpdateError>>,
{
    let mut retry = RETRY;
    loop {
        outside.mark_unchanged();
        let pause = match update().await {
            Ok(updated) => {
                if updated.changed {
                    tracing::info!("the dynamic DNS name points to another address now");
                }
                tracing::debug!(addresses = ?updated.addresses, "the dynamic DNS name is up to date");
                retry = RETRY;
                REFRESH
            }
            Err(error) if error.is_lasting() => {
                tracing::error!(%error, "the dynamic DNS name is not kept");
                REFUSED
            }
            Err(error) => {
                let pause = retry;
                tracing::warn!(%error, again_s = pause.as_secs(), "the dynamic DNS name was not updated");
                retry = (retry * 2).min(REFRESH);
                pause
            }
        };
        tokio::time::sleep(LEAST.min(pause)).await;
        tokio::select! {
            () = tokio::time::sleep(pause.saturating_sub(LEAST)) => {}
            Ok(()) = outside.changed() => tracing::debug!("the outside address changed"),
        }
    }
}

struct Keeper {
    fetcher: Fetcher,
    options: DynDnsOptions,
}

impl Keeper {
    async fn update(&self) -> Result<Updated, UpdateError> {
        let token = self.token().await?;
        let keeper = DuckDns { domain: &self.options.domain, token: &token };
        let answer = self.fetcher.get(&keeper.query()).await.map_err(UpdateError::Failed)?;
        duckdns::judge(&answer)
    }

    async fn token(&self) -> Result<Zeroizing<String>, UpdateError> {
        let path = &self.options.token_file;
        let wrong = |reason: &str| UpdateError::Token { path: path.clone(), reason: reason.to_owned() };
        let bytes = Zeroizing::new(tokio::fs::read(path).await.map_err(|error| wrong(&error.to_string()))?);
        let text = std::str::from_utf8(&bytes).ok().filter(|text| text.len() <= MAX_TOKEN_FILE);
        let token = text.ok_or_else(|| wrong("it holds no token"))?.trim();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(wrong("it holds no token"));
        }
        Ok(Zeroizing::new(token.to_owned()))
    }
}
