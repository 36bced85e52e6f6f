//! News of links, addresses and routes, by netlink. One task carries the messages; it ends when the [`Watch`] is dropped.

use anyhow::Context;
use futures_util::StreamExt;
use netlink_packet_route::{RouteNetlinkMessage, link::LinkFlags};
use rtnetlink::{MulticastGroup, packet_core::NetlinkPayload};

use super::super::burst::{Bursts, Changes, News};

const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// Watches the host's networks.
pub struct Watch(Bursts);

impl Watch {
    /// Starts to watch. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the system refuses the socket.
    pub fn open() -> anyhow::Result<Self> {
        let (connection, _handle, news) =
            rtnetlink::new_multicast_connection(&GROUPS).context("network changes cannot be watched")?;
        tokio::spawn(connection);
        Ok(Self(Bursts::new(news.map(|(message, _)| news_of(&message.payload)))))
    }

    /// Waits for changes: the first of a burst is told at once, what follows when it has calmed down; `None` when the
    /// socket is lost. Cancel-safe.
    pub async fn next(&mut self) -> Option<Changes> {
        self.0.next().await
    }
}

fn news_of(payload: &NetlinkPayload<RouteNetlinkMessage>) -> News {
    let NetlinkPayload::InnerMessage(message) = payload else { return News::Other };
    match message {
        RouteNetlinkMessage::NewLink(link) if !link.header.flags.contains(LinkFlags::LowerUp) => {
            News::Lost(link.header.index)
        }
        RouteNetlinkMessage::DelLink(link) => News::Lost(link.header.index),
        RouteNetlinkMessage::DelAddress(address) => News::Lost(address.header.index),
        RouteNetlinkMessage::NewRoute(route) if route.header.destination_prefix_length == 0 => News::WayOut,
        _ => News::Other,
    }
}
