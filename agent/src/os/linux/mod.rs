//! Linux, by rtnetlink: no program is called.

mod addresses;
mod clocks;
mod conntrack;
mod enumerate;
mod memory;
mod routes;
mod watch;

use std::{collections::BTreeSet, io};

use anyhow::Context;
use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec};

pub use clocks::{SystemClocks, Ticks};
pub use conntrack::Conntrack;
pub use memory::give_back;
pub use routes::{ROUTE_METRIC, ROUTE_PROTOCOL};
pub use watch::Watch;

pub use super::burst::Changes;
use super::{Change, Host, HostNetworks, LinkChange};

/// Packets that the kernel keeps for this program to read. A TUN's 500 are 2.5 ms of 200,000 small packets a second, which
/// is less than a busy machine may keep a thread waiting: with as many as other interfaces have, 40 % fewer were lost
/// there.
const QUEUE_LEN: u32 = 1000;

/// The own interface of one agent, seen through netlink.
///
/// One task carries the requests; it ends when the last `Netlink` is dropped.
#[derive(Clone)]
pub struct Netlink {
    handle: Handle,
    interface: String,
}

impl Netlink {
    /// Opens a netlink socket. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the system refuses the socket.
    pub fn open(interface: &str) -> anyhow::Result<Self> {
        let (connection, handle, _unsolicited) =
            rtnetlink::new_connection().context("no netlink socket can be opened")?;
        tokio::spawn(connection);
        Ok(Self { handle, interface: interface.to_owned() })
    }

    async fn link(&self) -> anyhow::Result<LinkMessage> {
        let mut links = self.handle.link().get().match_name(self.interface.clone()).execute();
        match links.try_next().await {
            Ok(Some(link)) => Ok(link),
            Ok(None) => anyhow::bail!("the interface {} is gone", self.interface),
            Err(error) => Err(error).with_context(|| format!("the interface {} is gone", self.interface)),
        }
    }

    async fn index(&self) -> anyhow::Result<u32> {
        Ok(self.link().await?.header.index)
    }
}

impl Host for Netlink {
    async fn set_link(&self, mtu: u16) -> anyhow::Result<LinkChange> {
        let link = self.link().await?;
        let up = link.header.flags.contains(LinkFlags::Up);
        let wanted = [LinkAttribute::Mtu(mtu.into()), LinkAttribute::TxQueueLen(QUEUE_LEN)];
        let change = LinkChange { was_down: !up, mtu_differed: !link.attributes.contains(&wanted[0]) };
        if up && wanted.iter().all(|attribute| link.attributes.contains(attribute)) {
            return Ok(change);
        }
        let index = link.header.index;
        // No link-local address: nobody on the other side answers router solicitations. A system without IPv6
        // refuses this; then there is nothing to turn off.
        let no_link_local = LinkMessageBuilder::<LinkUnspec>::new()
            .index(index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
                AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
            ])]))
            .build();
        if let Err(error) = self.handle.link().set(no_link_local).execute().await {
            tracing::debug!(%error, "link-local addresses stay on");
        }
        let message = wanted
            .into_iter()
            .fold(LinkMessageBuilder::<LinkUnspec>::new().index(index), |message, attribute| {
                message.append_extra_attribute(attribute)
            })
            .up()
            .build();
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .with_context(|| format!("the interface {} cannot be brought up", self.interface))?;
        Ok(change)
    }

    async fn set_addresses(&self, addresses: &BTreeSet<IpNet>, ranges: &[IpNet]) -> anyhow::Result<Change> {
        addresses::set(&self.handle, self.index().await?, addresses, ranges)
            .await
            .with_context(|| format!("the addresses of {} cannot be set", self.interface))
    }

    async fn set_routes(&self, routes: &BTreeSet<IpNet>) -> anyhow::Result<Change> {
        routes::set(&self.handle, self.index().await?, routes)
            .await
            .with_context(|| format!("the routes into {} cannot be set", self.interface))
    }

    async fn networks(&self) -> anyhow::Result<HostNetworks> {
        enumerate::networks(&self.handle, &self.interface)
            .await
            .context("the host's networks cannot be listed")
    }
}

/// Turns a netlink error into the system's own, with its number.
fn system_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use std::{process::Command, time::Duration};

    use super::*;
    use crate::{
        io::{offload::Offloads, tun},
        netns::isolated,
    };

    /// Nothing follows any more once so long nothing has come.
    const QUIET: Duration = Duration::from_millis(300);

    fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// The tests' second opinion; the agent itself calls no program.
    fn ip(arguments: &str) -> String {
        let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn the_interface_gets_what_is_wanted_once_and_loses_what_is_not() {
        isolated(
            "os::linux::tests::the_interface_gets_what_is_wanted_once_and_loses_what_is_not",
            async || {
                let _device = tun::open("t0", Offloads::ALL).unwrap();
                let host = Netlink::open("t0").unwrap();
                host.set_link(1280).await.unwrap();
                let addresses = nets(&["10.90.0.2/32", "fd00::2/128"]);
                let ranges = ["10.90.0.0/16", "fd00::/48"].map(|range| range.parse().unwrap());
                let routes = nets(&["10.90.0.0/16", "10.244.7.0/24", "fd00::/48"]);
                let change = host.set_addresses(&addresses, &ranges).await.unwrap();
                assert_eq!((change.added, change.removed, change.refused), (2, 0, vec![]));
                let change = host.set_routes(&routes).await.unwrap();
                assert_eq!((change.added, change.removed, change.refused), (3, 0, vec![]));
                assert_eq!(host.set_addresses(&addresses, &ranges).await.unwrap(), Change::default());
                assert_eq!(host.set_routes(&routes).await.unwrap(), Change::default());
                assert!(ip("link show t0").contains("mtu 1280"));
                assert!(ip("link show t0").contains("qlen 1000"));
                assert!(ip("route get 10.244.7.9").contains("dev t0 src 10.90.0.2"));
                assert!(!ip("-6 addr show t0").contains("fe80"), "no link-local address");

                ip("route add 10.1.0.0/16 dev t0");
                ip("addr add 10.90.0.99/32 dev t0");
                ip("addr add 192.0.2.7/24 dev t0");
                let change = host.set_routes(&nets(&["10.90.0.0/16"])).await.unwrap();
                assert_eq!((change.added, change.removed), (0, 2));
                let change = host.set_addresses(&nets(&["10.90.0.2/32"]), &ranges).await.unwrap();
                assert_eq!((change.added, change.removed), (0, 2));
                assert!(ip("route show").contains("10.1.0.0/16"), "a person's route stays");
                assert!(ip("addr show t0").contains("192.0.2.7/24"), "a person's address stays");
                let link = |was_down, mtu_differed| LinkChange { was_down, mtu_differed };
                assert_eq!(host.set_link(1280).await.unwrap(), link(false, false));
                ip("link set t0 down mtu 1300");
                assert_eq!(host.set_link(1280).await.unwrap(), link(true, true));
            },
        );
    }

    #[test]
    fn routes_of_others_are_neither_replaced_nor_preferred() {
        isolated("os::linux::tests::routes_of_others_are_neither_replaced_nor_preferred", async || {
            let _device = tun::open("t0", Offloads::ALL).unwrap();
            ip("link add d0 type veth peer name far");
            ip("link set far up");
            ip("addr add 10.90.1.1/24 dev d0");
            ip("link set d0 up");
            let host = Netlink::open("t0").unwrap();
            host.set_link(1280).await.unwrap();
            host.set_addresses(&nets(&["10.90.0.2/32"]), &[]).await.unwrap();
            host.set_routes(&nets(&["10.90.0.0/16", "10.90.1.0/24"])).await.unwrap();
            assert!(ip("route get 10.90.1.9").contains("dev d0"), "the connected network wins");
            assert!(ip("route get 10.90.2.9").contains("dev t0"));
            host.set_routes(&nets(&[])).await.unwrap();
            assert!(ip("route show").contains("10.90.1.0/24 dev d0"));
        });
    }

    #[test]
    fn networks_are_listed_and_their_changes_are_told() {
        isolated("os::linux::tests::networks_are_listed_and_their_changes_are_told", async || {
            let _device = tun::open("t0", Offloads::ALL).unwrap();
            let host = Netlink::open("t0").unwrap();
            let mut watch = Watch::open().unwrap();
            ip("link add eth0 type veth peer name far");
            ip("link set far up");
            ip("link set eth0 up");
            ip("addr add 192.0.2.7/24 dev eth0");
            ip("route add default via 192.0.2.1");
            let deadline = Duration::from_secs(5);
            tokio::time::timeout(deadline, watch.next()).await.unwrap().unwrap();
            // The first is told at once, while the rest is under way.
            while tokio::time::timeout(QUIET, watch.next()).await.is_ok() {}
            let networks = host.networks().await.unwrap();
            assert!(networks.interfaces.iter().all(|interface| interface.name != "t0"));
            let connected: Vec<_> = networks.connected().map(|net| net.to_string()).collect();
            assert!(connected.contains(&"192.0.2.0/24".to_owned()), "{networks:?}");
            assert_eq!(networks.underlay().default_routes.len(), 1);
            assert_eq!(networks.candidates(7)[0].address, "192.0.2.7:7".parse().unwrap());

            let eth0 = networks.interfaces.iter().find(|interface| interface.name == "eth0").unwrap().index;
            ip("addr del 192.0.2.7/24 dev eth0");
            ip("addr add 192.0.2.7/24 dev eth0");
            let changes = tokio::time::timeout(deadline, watch.next()).await.unwrap().unwrap();
            assert!(changes.lost.contains(&eth0), "{changes:?}");
        });
    }

    #[test]
    fn an_interface_that_is_gone_is_named() {
        isolated("os::linux::tests::an_interface_that_is_gone_is_named", async || {
            let host = Netlink::open("nowhere0").unwrap();
            let error = host.set_routes(&nets(&[])).await.unwrap_err();
            assert!(format!("{error:#}").contains("nowhere0"), "{error:#}");
        });
    }
}
