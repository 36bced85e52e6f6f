//! News of links, addresses and routes, by the routing socket.

use std::{io, os::fd::OwnedFd};

use anyhow::Context as _;
use futures_util::stream;
use rustix::net::{AddressFamily, SocketType};
use tokio::io::unix::AsyncFd;

use super::{
    super::burst::{Bursts, Changes, News},
    messages,
};

/// Longest message: a header and eight addresses.
const MAX_MESSAGE: usize = 2048;

/// Watches the host's networks.
pub struct Watch(Bursts);

impl Watch {
    /// Starts to watch. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the system refuses the socket.
    pub fn open() -> anyhow::Result<Self> {
        let family = AddressFamily::from_raw(libc::PF_ROUTE as _);
        let socket = rustix::net::socket(family, SocketType::RAW, None)
            .and_then(|socket| rustix::io::ioctl_fionbio(&socket, true).map(|()| socket))
            .context("network changes cannot be watched")?;
        let socket = AsyncFd::new(socket).context("network changes cannot be watched")?;
        let news = stream::unfold(socket, |socket| async { Some((next(&socket).await.ok()?, socket)) });
        Ok(Self(Bursts::new(news)))
    }

    /// Waits for changes: the first of a burst is told at once, what follows when it has calmed down; `None` when the
    /// socket is lost. Cancel-safe.
    pub async fn next(&mut self) -> Option<Changes> {
        self.0.next().await
    }
}

/// Waits for a message that is news.
async fn next(socket: &AsyncFd<OwnedFd>) -> io::Result<News> {
    let mut buffer = [0; MAX_MESSAGE];
    loop {
        let mut ready = socket.readable().await?;
        match ready.try_io(|socket| Ok(rustix::io::read(socket, &mut buffer[..])?)) {
            Ok(Ok(len)) => {
                if let Some(news) =
                    messages::parse(&buffer[..len]).filter_map(Result::ok).find_map(|it| it.news())
                {
                    return Ok(news);
                }
            }
            // The system had more to say than there is room for.
            Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(News::Other),
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
}
