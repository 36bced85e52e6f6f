//! The rules of the own table, as text for `nft`.
//!
//! ```text
//!   from            to                        source
//!   own pod         pod, Service, mesh        kept
//!   own pod         the world                 masqueraded
//!   this node       pod, through the mesh     kept, if the others know it; else the mesh address
//!   the world       own pod                   kept (hostPort, externalTrafficPolicy Local)
//! ```
//!
//! kube-proxy marks with 0x4000 what it is going to masquerade itself, in either of its modes: that is left to it. A node
//! asks a Service with the address of its way to the internet, as the route to a Service is the default one; sent to
//! another node's pod, such a packet would be refused there, for the mesh knows no such source. So everything that
//! leaves through the mesh with a source that is not the mesh's gets the mesh address.
//!
//! The size of TCP segments is cut to what the routes of both directions carry.

use std::fmt::Write as _;

use ipnet::IpNet;

use crate::{kubernetes::podnet::Desired, os::Family};

/// The own table; its family is `inet`.
pub const TABLE: &str = "mesh-pods";
/// The mark of kube-proxy for what it is going to masquerade (`--iptables-masquerade-bit`, 14).
const KUBE_PROXY_MARK: &str = "0x00004000";

/// Returns the whole table, as a transaction that replaces it.
pub(super) fn render(desired: &Desired) -> String {
    let Desired { interface, .. } = desired;
    let bridge = desired.bridge();
    let mut text = format!(
        "add table inet {TABLE}\n\
         delete table inet {TABLE}\n\
         table inet {TABLE} {{\n\
         \tchain forward {{\n\
         \t\ttype filter hook forward priority mangle; policy accept;\n"
    );
    for direction in ["iifname", "oifname"] {
        let _ = writeln!(
            text,
            "\t\t{direction} {{ \"{interface}\", \"{bridge}\" }} tcp flags & (syn | rst) == syn \
             tcp option maxseg size set rt mtu"
        );
    }
    let _ = write!(
        text,
        "\t}}\n\
         \tchain postrouting {{\n\
         \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
         \t\tmeta mark & {KUBE_PROXY_MARK} == {KUBE_PROXY_MARK} return\n"
    );
    for (family, address, multicast) in [(Family::V4, "ip", "224.0.0.0/4"), (Family::V6, "ip6", "ff00::/8")] {
        let of_family = |nets: &[&[IpNet]]| -> Vec<IpNet> {
            let nets = nets.iter().copied().flatten();
            IpNet::aggregate(&nets.map(IpNet::trunc).filter(|net| Family::of(net.addr()) == family).collect())
        };
        let own = of_family(&[&desired.pods]);
        let known = of_family(&[&desired.mesh, &desired.cluster_pods, &desired.pods, &desired.offered]);
        if !known.is_empty() {
            let _ = writeln!(
                text,
                "\t\toifname \"{interface}\" {address} saddr != {{ {} }} masquerade fully-random",
                list(&known)
            );
        }
        if own.is_empty() {
            continue;
        }
        let mut inside = of_family(&[&desired.mesh, &desired.cluster_pods, &desired.pods, &desired.services]);
        inside.push(multicast.parse().expect("invariant: this is a network"));
        let own = list(&own);
        let _ =
            writeln!(text, "\t\t{address} saddr {{ {own} }} {address} daddr {{ {} }} return", list(&inside));
        let _ = writeln!(
            text,
            "\t\toifname != {{ \"{interface}\", \"{bridge}\" }} {address} saddr {{ {own} }} masquerade fully-random"
        );
    }
    text.push_str("\t}\n}\n");
    text
}

fn list(nets: &[IpNet]) -> String {
    nets.iter().map(IpNet::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::podnet::fixtures;

    #[test]
    fn the_table_of_a_node() {
        let expected = r#"add table inet mesh-pods
delete table inet mesh-pods
table inet mesh-pods {
	chain forward {
		type filter hook forward priority mangle; policy accept;
		iifname { "mesh0", "cni-mesh0" } tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
		oifname { "mesh0", "cni-mesh0" } tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00004000 == 0x00004000 return
		oifname "mesh0" ip saddr != { 10.90.0.0/16, 10.244.0.0/16 } masquerade fully-random
		ip saddr { 10.244.1.0/24 } ip daddr { 10.90.0.0/16, 10.96.0.0/12, 10.244.0.0/16, 224.0.0.0/4 } return
		oifname != { "mesh0", "cni-mesh0" } ip saddr { 10.244.1.0/24 } masquerade fully-random
		oifname "mesh0" ip6 saddr != { fd00:10:244::/48, fd5d::/48 } masquerade fully-random
		ip6 saddr { fd00:10:244:1::/64 } ip6 daddr { fd00:10:96::/112, fd00:10:244::/48, fd5d::/48, ff00::/8 } return
		oifname != { "mesh0", "cni-mesh0" } ip6 saddr { fd00:10:244:1::/64 } masquerade fully-random
	}
}
"#;
        assert_eq!(render(&fixtures::desired()), expected);
    }

    #[test]
    fn a_node_of_ipv6_alone_masquerades_nothing_of_ipv4_but_what_the_mesh_does_not_know() {
        let mut only_v6 = fixtures::desired();
        only_v6.pods.remove(0);
        let text = render(&only_v6);
        let of_v4: Vec<_> = text.lines().filter(|line| line.contains(" ip ")).collect();
        assert_eq!(
            of_v4,
            ["\t\toifname \"mesh0\" ip saddr != { 10.90.0.0/16, 10.244.0.0/16 } masquerade fully-random"]
        );
        let pods = "ip6 saddr { fd00:10:244:1::/64 } masquerade fully-random";
        assert_eq!(text.matches(pods).count(), 1, "{text}");
        only_v6.pods.insert(1, "10.244.1.0/24".parse().unwrap());
        assert_eq!(
            render(&only_v6),
            render(&fixtures::desired()),
            "the order is nothing to the packet filter"
        );
    }

    #[test]
    fn what_is_not_there_has_no_rule() {
        let only_v4 = Desired {
            pods: vec!["10.244.1.0/24".parse().unwrap()],
            cluster_pods: vec![],
            services: vec![],
            mesh: vec!["10.90.0.0/16".parse().unwrap()],
            offered: vec!["192.168.7.0/24".parse().unwrap()],
            ..fixtures::desired()
        };
        let text = render(&only_v4);
        assert!(!text.contains("ip6"), "{text}");
        assert!(text.contains("saddr != { 10.90.0.0/16, 10.244.1.0/24, 192.168.7.0/24 }"), "{text}");
        assert!(
            text.contains("daddr { 10.90.0.0/16, 10.244.1.0/24, 224.0.0.0/4 }"),
            "what is offered is the world"
        );
    }
}
