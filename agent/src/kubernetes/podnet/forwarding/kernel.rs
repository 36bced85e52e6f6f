//! The settings of the kernel that a node of a pod network needs (`/proc/sys/net`).
//!
//! A node that forwards IPv6 ignores what routers announce, and so loses its own way out, unless the interface says
//! otherwise (`accept_ra` 2): that comes first, and again for each uplink that appears later. Whoever told the node to
//! forward before, as kubeadm wants it, is not asked whether he thought of that. The pods' bridge is no uplink, and pods
//! are nobody's routers. A strict filter for reverse paths drops what comes from the mesh while the
//! node's own way to the sender is another; the larger value of `all` and the interface's counts, so 2, loose, on the
//! mesh's interface is enough.

use std::{fs, io, path::PathBuf};

use crate::{
    kubernetes::podnet::{Desired, Problem},
    os::Family,
};

const ROOT: &str = "/proc/sys/net";

/// A setting, by its path below `/proc/sys/net`, and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    path: String,
    value: &'static str,
}

/// Has the settings be as needed; `uplinks` are the interfaces to the world.
pub(super) fn set(desired: &Desired, uplinks: &[String]) -> Vec<Problem> {
    let read = |path: &str| {
        fs::read_to_string(PathBuf::from(ROOT).join(path)).ok().map(|text| text.trim().to_owned())
    };
    let mut problems = Vec::new();
    for setting in plan(desired, uplinks, &read) {
        match fs::write(PathBuf::from(ROOT).join(&setting.path), setting.value) {
            Ok(()) => tracing::info!(setting = setting.path, value = setting.value, "kernel setting changed"),
            Err(error) => problems.push(refusal(setting, &error)),
        }
    }
    if read("bridge/bridge-nf-call-iptables").is_none() {
        problems.push(Problem::NoBridgeFilter);
    }
    problems
}

fn refusal(setting: Setting, error: &io::Error) -> Problem {
    let Setting { path, value } = setting;
    Problem::Sysctl { name: format!("net/{path}"), value: value.to_owned(), reason: error.to_string() }
}

/// Returns the settings that are not as needed, in their order.
fn plan(desired: &Desired, uplinks: &[String], read: &dyn Fn(&str) -> Option<String>) -> Vec<Setting> {
    let has = |family| desired.pods.iter().any(|range| Family::of(range.addr()) == family);
    let is = |path: &str, value: &str| read(path).is_some_and(|present| present == value);
    let mut settings = Vec::new();
    let mut want = |path: String, value: &'static str| {
        if !is(&path, value) {
            settings.push(Setting { path, value });
        }
    };
    if has(Family::V4) {
        want("ipv4/ip_forward".to_owned(), "1");
        let own = format!("ipv4/conf/{}/rp_filter", desired.interface);
        let strict = is("ipv4/conf/all/rp_filter", "1") || is(&own, "1");
        if strict && !is("ipv4/conf/all/rp_filter", "2") {
            want(own, "2");
        }
    }
    if has(Family::V6) {
        for uplink in uplinks {
            let path = format!("ipv6/conf/{uplink}/accept_ra");
            if is(&path, "1") {
                want(path, "2");
            }
        }
        want("ipv6/conf/all/forwarding".to_owned(), "1");
    }
    for path in ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"] {
        if read(path).is_some() {
            want(path.to_owned(), "1");
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::kubernetes::podnet::fixtures;

    fn planned(desired: &Desired, present: &[(&str, &str)]) -> Vec<String> {
        let present: BTreeMap<_, _> = present.iter().copied().collect();
        let read = |path: &str| present.get(path).map(|value| (*value).to_owned());
        plan(desired, &["eth0".to_owned(), "wlan0".to_owned()], &read)
            .into_iter()
            .map(|setting| format!("{}={}", setting.path, setting.value))
            .collect()
    }

    #[test]
    fn a_node_that_is_no_router_yet_keeps_its_way_out() {
        let present = [
            ("ipv4/ip_forward", "0"),
            ("ipv4/conf/all/rp_filter", "1"),
            ("ipv4/conf/mesh0/rp_filter", "0"),
            ("ipv6/conf/all/forwarding", "0"),
            ("ipv6/conf/eth0/accept_ra", "1"),
            ("ipv6/conf/wlan0/accept_ra", "0"),
            ("bridge/bridge-nf-call-iptables", "0"),
            ("bridge/bridge-nf-call-ip6tables", "1"),
        ];
        let expected = [
            "ipv4/ip_forward=1",
            "ipv4/conf/mesh0/rp_filter=2",
            "ipv6/conf/eth0/accept_ra=2",
            "ipv6/conf/all/forwarding=1",
            "bridge/bridge-nf-call-iptables=1",
        ];
        assert_eq!(planned(&fixtures::desired(), &present), expected);
    }

    #[test]
    fn an_uplink_that_appears_on_a_router_is_told_to_hear_its_own() {
        let present = [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv6/conf/eth0/accept_ra", "2"),
            ("ipv6/conf/wlan0/accept_ra", "1"),
            ("ipv6/conf/cni-mesh0/accept_ra", "1"),
        ];
        assert_eq!(planned(&fixtures::desired(), &present), ["ipv6/conf/wlan0/accept_ra=2"]);
    }

    #[test]
    fn a_node_of_ipv6_alone_is_left_as_it_is_in_ipv4() {
        let mut only_v6 = fixtures::desired();
        only_v6.pods.remove(0);
        let present = [("ipv4/ip_forward", "0"), ("ipv4/conf/all/rp_filter", "1")];
        assert_eq!(planned(&only_v6, &present), ["ipv6/conf/all/forwarding=1"]);
    }

    #[test]
    fn what_is_as_needed_is_not_touched() {
        let present = [
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "1"),
            ("ipv4/conf/mesh0/rp_filter", "2"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv6/conf/eth0/accept_ra", "2"),
            ("ipv6/conf/wlan0/accept_ra", "0"),
        ];
        assert!(planned(&fixtures::desired(), &present).is_empty());
        let mut only_v4 = fixtures::desired();
        only_v4.pods.truncate(1);
        assert_eq!(planned(&only_v4, &[("ipv4/ip_forward", "0")]), ["ipv4/ip_forward=1"]);
    }
}
