//! News of links, addresses and routes, gathered until they calm down.
//!
//! A change of network is a burst of messages (link, addresses, routes). [`Watch::next`] waits for the first and
//! then until none has come for [`QUIET`], but not longer than [`LONGEST`]. One task carries the messages; it
//! ends when the `Watch` is dropped.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Context;
use futures_util::{Stream, StreamExt};
use netlink_packet_route::{RouteNetlinkMessage, link::LinkFlags};
use rtnetlink::{MulticastGroup, packet_core::NetlinkPayload};
use tokio::time::{Instant, timeout_at};

/// A burst is over when nothing has come for this long: longer than a DHCP client takes from one step to the next
/// within the kernel, and short against the half second in which a peer must be reached again.
const QUIET: Duration = Duration::from_millis(50);

/// A burst is reported after this long even if it goes on.
const LONGEST: Duration = Duration::from_millis(250);

const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// What a burst of news was about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Indexes of interfaces that lost their carrier, an address, or themselves: even if all looks the same after
    /// the burst, the network behind them may be another.
    pub lost: BTreeSet<u32>,
}

/// Watches the host's networks.
pub struct Watch {
    news: Box<dyn Stream<Item = NetlinkPayload<RouteNetlinkMessage>> + Send + Unpin>,
}

impl Watch {
    /// Starts to watch. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the system refuses the socket.
    pub fn open() -> anyhow::Result<Self> {
        let (connection, _handle, news) =
            rtnetlink::new_multicast_connection(&GROUPS).context("network changes cannot be watched")?;
        tokio::spawn(connection);
        Ok(Self { news: Box::new(news.map(|(message, _)| message.payload)) })
    }

    /// Waits for a burst of changes; `None` when the socket is lost. Cancel-safe but for the burst that is being
    /// gathered.
    pub async fn next(&mut self) -> Option<Changes> {
        let mut changes = Changes::default();
        changes.note(&self.news.next().await?);
        let longest = Instant::now() + LONGEST;
        loop {
            let quiet = (Instant::now() + QUIET).min(longest);
            match timeout_at(quiet, self.news.next()).await {
                Ok(Some(message)) => changes.note(&message),
                Ok(None) => return None,
                Err(_) => return Some(changes),
            }
            if Instant::now() >= longest {
                return Some(changes);
            }
        }
    }
}

impl Changes {
    fn note(&mut self, payload: &NetlinkPayload<RouteNetlinkMessage>) {
        let NetlinkPayload::InnerMessage(message) = payload else { return };
        let lost = match message {
            RouteNetlinkMessage::NewLink(link) if !link.header.flags.contains(LinkFlags::LowerUp) => {
                link.header.index
            }
            RouteNetlinkMessage::DelLink(link) => link.header.index,
            RouteNetlinkMessage::DelAddress(address) => address.header.index,
            _ => return,
        };
        self.lost.insert(lost);
    }
}
