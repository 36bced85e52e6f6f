//! Which of the Node's ranges this node can have: a pure decision.
//!
//! A range that clashes with something is not offered to the mesh. One that was accepted before is kept, whatever it
//! clashes with now: the laptop that stands in a network with the same addresses for an hour loses that network's
//! neighbours, and not its pods. A Node that is deleted and made again with other ranges keeps those that it had until the
//! mesh has accepted the others: pods that run stay where everybody finds them. That is so for each family by itself. A
//! family that the Node has no more is given up as soon as the other one is there.

use std::{collections::BTreeSet, fmt};

use ipnet::IpNet;
use mesh_proto::route::{RouteAnswer, RouteState, check_routable, overlap};

use super::objects::Node;
use crate::os::{Family, HostNetworks};

/// Addresses of carriers' NATs (RFC 6598).
const CARRIER_NAT: &str = "100.64.0.0/10";
/// What the controller manager has to be told for there to be ranges.
const ALLOCATE: &str = "--allocate-node-cidrs";

/// What the decision depends on.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    /// The whole cluster's ranges for pods; empty when they are not known.
    pub(super) pod_ranges: &'a [IpNet],
    /// The ranges for Services.
    pub(super) service_ranges: &'a [IpNet],
    /// The mesh's own ranges.
    pub(super) mesh: &'a [IpNet],
    /// The host's networks.
    pub(super) networks: &'a HostNetworks,
    /// What became of earlier offers.
    pub(super) answers: &'a [RouteAnswer],
    /// What the mesh has accepted before.
    pub(super) accepted: &'a BTreeSet<IpNet>,
    /// The number of this machine, where it has one of its own.
    pub(super) machine_id: Option<&'a str>,
}

/// What is to be done about the Node's ranges.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// To be offered to the mesh.
    pub(super) offered: Vec<IpNet>,
    /// Of these, those that are this node's own.
    pub(super) usable: Vec<IpNet>,
    /// Whether all usable ones are what an earlier Node of this name had.
    pub(super) is_former: bool,
    /// What a person should know, worst first.
    pub(super) problems: Vec<Problem>,
}

/// Something about the Node that a person has to put right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Problem {
    /// There is no such Node.
    NoNode { name: String },
    /// There was, and somebody deleted it.
    NodeDeleted { name: String },
    /// Another machine's kubelet says that it is this Node.
    OtherMachine { name: String },
    /// It has no ranges.
    NoRanges { name: String },
    /// Its range is no range.
    NoRange { text: String },
    /// The range can be nobody's.
    Unroutable { range: IpNet, why: String },
    /// It is outside of what the cluster has for pods.
    Outside { range: IpNet, cluster: Vec<IpNet> },
    /// The host stands in it.
    Lan { range: IpNet, lan: IpNet, interface: String },
    /// The host's provider uses these addresses.
    CarrierNat { range: IpNet, interface: String },
    /// Services have these addresses.
    Services { range: IpNet, services: IpNet },
    /// The mesh itself has them.
    Mesh { range: IpNet, mesh: IpNet },
    /// The mesh does not take it.
    NotTaken { range: IpNet, state: RouteState, why: String },
}

/// Decides.
pub(super) fn judge(node: &Node, around: &Surroundings<'_>) -> Verdict {
    let mut verdict = Verdict::default();
    let name = &node.metadata.name;
    let machine = &node.status.node_info.machine_id;
    if around.machine_id.is_some_and(|own| !machine.is_empty() && own != machine) {
        verdict.problems.push(Problem::OtherMachine { name: name.clone() });
    }
    let (ranges, wrong) = node.pod_ranges();
    if ranges.is_empty() && wrong.is_empty() {
        verdict.problems.push(Problem::NoRanges { name: name.clone() });
    }
    verdict.problems.extend(wrong.into_iter().map(|text| Problem::NoRange { text }));
    for range in ranges.iter().copied() {
        let clash = clash(&range, around);
        let is_kept = around.accepted.contains(&range);
        if clash.is_none() || is_kept {
            verdict.offered.push(range);
            let answer = around.answers.iter().find(|answer| answer.prefix == range);
            match answer.map(|answer| answer.state) {
                Some(RouteState::Approved) => verdict.usable.push(range),
                // Not asked yet, or the coordinator is away.
                None if is_kept => verdict.usable.push(range),
                None => {}
                Some(state @ (RouteState::Pending | RouteState::Refused | RouteState::Unknown)) => {
                    if is_kept {
                        verdict.usable.push(range);
                    }
                    let why = answer.and_then(|answer| answer.reason.clone());
                    let why = why.unwrap_or_else(|| "the coordinator does not say why".to_owned());
                    verdict.problems.push(Problem::NotTaken { range, state, why });
                }
            }
        }
        verdict.problems.extend(clash);
    }
    let has_own = !verdict.usable.is_empty();
    let is_awaited = |family| match has_own {
        true => of(family, &ranges) && !of(family, &verdict.usable),
        false => true,
    };
    let former: Vec<_> =
        former(&ranges, around).into_iter().filter(|range| is_awaited(Family::of(range.addr()))).collect();
    verdict.is_former = !has_own && !former.is_empty();
    verdict.offered.extend(&former);
    verdict.usable.extend(&former);
    // In the order of the Node's own.
    let place = |range: &IpNet| {
        ranges
            .iter()
            .position(|own| Family::of(own.addr()) == Family::of(range.addr()))
            .unwrap_or(ranges.len())
    };
    verdict.usable.sort_by_key(place);
    verdict
}

/// Whether there is one of a family.
fn of(family: Family, ranges: &[IpNet]) -> bool {
    ranges.iter().any(|range| Family::of(range.addr()) == family)
}

/// Returns the ranges that were this node's before the Node had these, and still may be.
fn former(ranges: &[IpNet], around: &Surroundings<'_>) -> Vec<IpNet> {
    let is_lost = |range: &IpNet| {
        let answer = around.answers.iter().find(|answer| answer.prefix == *range);
        answer.is_some_and(|answer| answer.state != RouteState::Approved)
    };
    around.accepted.iter().filter(|range| !ranges.contains(range) && !is_lost(range)).copied().collect()
}

/// Returns what a range clashes with.
fn clash(range: &IpNet, around: &Surroundings<'_>) -> Option<Problem> {
    let range = *range;
    if let Err(why) = check_routable(&range) {
        return Some(Problem::Unroutable { range, why: why.to_string() });
    }
    if let Some(mesh) = around.mesh.iter().find(|mesh| overlap(mesh, &range)) {
        return Some(Problem::Mesh { range, mesh: *mesh });
    }
    if let Some(services) = around.service_ranges.iter().find(|services| overlap(services, &range)) {
        return Some(Problem::Services { range, services: *services });
    }
    let is_inside = |cluster: &IpNet| cluster.contains(&range);
    if !around.pod_ranges.is_empty() && !around.pod_ranges.iter().any(is_inside) {
        return Some(Problem::Outside { range, cluster: around.pod_ranges.to_vec() });
    }
    let carrier: IpNet = CARRIER_NAT.parse().expect("CARRIER_NAT is a prefix");
    // What stands on pods' own bridges, ours or an older network's, is no network around the host.
    for interface in around.networks.interfaces.iter().filter(|interface| interface.is_underlay()) {
        let name = || interface.name.clone();
        for lan in interface.addresses.iter().map(IpNet::trunc) {
            if overlap(&lan, &range) {
                return Some(Problem::Lan { range, lan, interface: name() });
            }
            if overlap(&carrier, &range) && overlap(&carrier, &lan) {
                return Some(Problem::CarrierNat { range, interface: name() });
            }
        }
    }
    None
}

impl Problem {
    /// Returns the reason of the Event that tells of it.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::NoNode { .. } | Self::NodeDeleted { .. } => "MeshNodeMissing",
            Self::OtherMachine { .. } => "MeshNodeNameTaken",
            Self::NoRanges { .. } | Self::NoRange { .. } => "MeshNoPodCIDR",
            Self::Unroutable { .. }
            | Self::Outside { .. }
            | Self::Lan { .. }
            | Self::CarrierNat { .. }
            | Self::Services { .. }
            | Self::Mesh { .. } => "MeshPodCIDRConflict",
            Self::NotTaken { .. } => "MeshPodCIDRRefused",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNode { name } => write!(
                f,
                "the cluster has no Node {name}: kubelet has not registered it, or it has another name (--kubernetes-node-name)"
            ),
            Self::NodeDeleted { name } => {
                write!(
                    f,
                    "the Node {name} was deleted from the cluster: its pods go on until it is there again"
                )
            }
            Self::OtherMachine { name } => write!(
                f,
                "the Node {name} belongs to another machine with the same name: give one of the two another name"
            ),
            Self::NoRanges { name } => write!(
                f,
                "the Node {name} has no podCIDR: kube-controller-manager runs without {ALLOCATE} (and --cluster-cidr; kubeadm: \
                 networking.podSubnet)"
            ),
            Self::NoRange { text } => write!(f, "the podCIDR {text:?} of this Node is no range of addresses"),
            Self::Unroutable { range, why } => write!(f, "the podCIDR {range} cannot be used: {why}"),
            Self::Outside { range, cluster } => {
                let cluster: Vec<_> = cluster.iter().map(ToString::to_string).collect();
                let cluster = cluster.join(", ");
                write!(f, "the podCIDR {range} is outside of the cluster's range for pods ({cluster})")
            }
            Self::Lan { range, lan, interface } => write!(
                f,
                "the podCIDR {range} clashes with {lan}, the network of this host's {interface}: the cluster needs another \
                 range for pods, or the site other addresses"
            ),
            Self::CarrierNat { range, interface } => write!(
                f,
                "the podCIDR {range} lies in {CARRIER_NAT}, which this host's provider uses itself ({interface}): the cluster \
                 needs another range for pods"
            ),
            Self::Services { range, services } => {
                write!(f, "the podCIDR {range} clashes with the range {services} of the cluster's Services")
            }
            Self::Mesh { range, mesh } => {
                write!(f, "the podCIDR {range} clashes with {mesh}, the mesh's own addresses")
            }
            Self::NotTaken { range, state, why } => {
                write!(f, "the podCIDR {range} is {state} by the mesh: {why}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::HostInterface;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn node(ranges: &[&str]) -> Node {
        let mut node = Node::default();
        node.metadata.name = "pi".to_owned();
        node.spec.pod_cidrs = ranges.iter().map(|range| (*range).to_owned()).collect();
        node
    }

    fn networks(named: &[(&str, &str)]) -> HostNetworks {
        let interface = |(index, (name, address)): (usize, &(&str, &str))| HostInterface {
            index: u32::try_from(index).unwrap(),
            name: (*name).to_owned(),
            up: true,
            addresses: [net(address)].into(),
        };
        HostNetworks {
            interfaces: named.iter().enumerate().map(interface).collect(),
            ..HostNetworks::default()
        }
    }

    struct Case {
        networks: HostNetworks,
        answers: Vec<RouteAnswer>,
        accepted: BTreeSet<IpNet>,
    }

    impl Case {
        fn new(named: &[(&str, &str)]) -> Self {
            Self { networks: networks(named), answers: vec![], accepted: BTreeSet::new() }
        }

        fn judge(&self, node: &Node) -> Verdict {
            judge(
                node,
                &Surroundings {
                    pod_ranges: &["10.244.0.0/16", "100.64.0.0/16", "192.168.0.0/16", "fd00::/48"].map(net),
                    service_ranges: &[net("10.244.240.0/20")],
                    mesh: &[net("10.90.0.0/16"), net("fd5d:1:2::/48")],
                    networks: &self.networks,
                    answers: &self.answers,
                    accepted: &self.accepted,
                    machine_id: Some("0123"),
                },
            )
        }
    }

    fn answer(prefix: &str, state: RouteState) -> RouteAnswer {
        RouteAnswer { prefix: net(prefix), state, reason: Some("it belongs to country".to_owned()) }
    }

    #[test]
    fn a_range_is_used_once_the_mesh_has_accepted_it() {
        let node = node(&["10.244.1.0/24", "fd00:0:0:1::/64"]);
        let mut case = Case::new(&[("eth0", "192.168.1.20/24")]);
        let verdict = case.judge(&node);
        assert_eq!((verdict.offered.len(), verdict.usable.len()), (2, 0), "{verdict:?}");
        case.answers = vec![
            answer("10.244.1.0/24", RouteState::Approved),
            answer("fd00:0:0:1::/64", RouteState::Pending),
        ];
        let verdict = case.judge(&node);
        assert_eq!(verdict.usable, [net("10.244.1.0/24")]);
        let said = verdict.problems[0].to_string();
        assert_eq!(said, "the podCIDR fd00:0:0:1::/64 is pending by the mesh: it belongs to country");
    }

    #[test]
    fn what_worked_goes_on_while_the_coordinator_is_away_and_after_it_has_changed_its_mind() {
        let node = node(&["10.244.1.0/24"]);
        let mut case = Case::new(&[]);
        case.accepted = [net("10.244.1.0/24")].into();
        assert_eq!(case.judge(&node).usable, [net("10.244.1.0/24")]);
        case.answers = vec![answer("10.244.1.0/24", RouteState::Refused)];
        let verdict = case.judge(&node);
        assert_eq!((verdict.usable.len(), verdict.problems.len()), (1, 1));
        case.networks = networks(&[("wlan0", "10.244.1.77/24")]);
        assert_eq!(case.judge(&node).usable, [net("10.244.1.0/24")], "a network that one visits");
    }

    #[test]
    fn a_node_that_is_made_again_keeps_its_ranges_until_it_has_others() {
        let before = net("10.244.1.0/24");
        let mut case = Case::new(&[("eth0", "192.168.1.20/24")]);
        case.accepted = [before].into();
        case.answers = vec![answer("10.244.1.0/24", RouteState::Approved)];
        for bad in [vec![], vec!["192.168.1.0/24"], vec!["no range"]] {
            let verdict = case.judge(&node(&bad));
            assert_eq!((verdict.usable, verdict.offered), (vec![before], vec![before]), "{bad:?}");
            assert!(verdict.is_former && verdict.problems.len() == 1, "{bad:?}: {:?}", verdict.problems);
        }
        let (again, new) = (node(&["10.244.7.0/24"]), net("10.244.7.0/24"));
        let verdict = case.judge(&again);
        assert_eq!((verdict.usable, verdict.offered), (vec![before], vec![new, before]), "not asked yet");
        case.answers.push(answer("10.244.7.0/24", RouteState::Refused));
        let verdict = case.judge(&again);
        assert_eq!((verdict.usable, verdict.problems.len()), (vec![before], 1), "{:?}", verdict.problems);
        case.answers[1] = answer("10.244.7.0/24", RouteState::Approved);
        let verdict = case.judge(&again);
        assert_eq!((verdict.usable, verdict.offered, verdict.is_former), (vec![new], vec![new], false));
        // Meanwhile the mesh has given it to somebody else.
        case.answers = vec![answer("10.244.1.0/24", RouteState::Refused)];
        assert_eq!(case.judge(&node(&[])).usable, []);
    }

    #[test]
    fn each_family_goes_its_own_way() {
        let [v4, v6] = ["10.244.1.0/24", "fd00:0:0:1::/64"].map(net);
        let mut case = Case::new(&[("eth0", "192.168.1.20/24")]);
        case.accepted = [v4, v6].into();
        case.answers = vec![
            answer("10.244.1.0/24", RouteState::Approved),
            answer("fd00:0:0:1::/64", RouteState::Approved),
            answer("fd00:0:0:7::/64", RouteState::Refused),
        ];
        for (ranges, usable) in [
            (&["10.244.1.0/24", "fd00:0:0:7::/64"][..], vec![v4, v6]),
            (&["fd00:0:0:7::/64", "10.244.1.0/24"], vec![v6, v4]),
            (&["10.244.1.0/24"], vec![v4]),
            (&["fd00:0:0:1::/64"], vec![v6]),
            (&["fd00:0:0:7::/64"], vec![v4, v6]),
        ] {
            let verdict = case.judge(&node(ranges));
            assert_eq!(verdict.usable.iter().collect::<BTreeSet<_>>(), usable.iter().collect(), "{ranges:?}");
            if ranges.len() > 1 {
                assert_eq!(verdict.usable, usable, "{ranges:?}");
                assert_eq!(
                    verdict.problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    ["the podCIDR fd00:0:0:7::/64 is refused by the mesh: it belongs to country"]
                );
                assert!(
                    !verdict.is_former && verdict.usable.iter().all(|range| verdict.offered.contains(range))
                );
            }
        }
    }

    #[test]
    fn each_clash_has_its_sentence() {
        for (range, named, sentence) in [
            (
                "192.168.1.0/24",
                ("eth0", "192.168.1.20/24"),
                "the podCIDR 192.168.1.0/24 clashes with 192.168.1.0/24, the network of this host's eth0: the cluster needs \
                 another range for pods, or the site other addresses",
            ),
            (
                "100.64.3.0/24",
                ("wwan0", "100.71.2.3/30"),
                "the podCIDR 100.64.3.0/24 lies in 100.64.0.0/10, which this host's provider uses itself (wwan0): the cluster \
                 needs another range for pods",
            ),
            (
                "10.244.241.0/24",
                ("eth0", "172.16.0.2/24"),
                "the podCIDR 10.244.241.0/24 clashes with the range 10.244.240.0/20 of the cluster's Services",
            ),
            (
                "10.90.3.0/24",
                ("eth0", "172.16.0.2/24"),
                "the podCIDR 10.90.3.0/24 clashes with 10.90.0.0/16, the mesh's own addresses",
            ),
            (
                "172.20.0.0/24",
                ("eth0", "172.16.0.2/24"),
                "the podCIDR 172.20.0.0/24 is outside of the cluster's range for pods (10.244.0.0/16, 100.64.0.0/16, \
                 192.168.0.0/16, fd00::/48)",
            ),
            (
                "169.254.3.0/24",
                ("eth0", "172.16.0.2/24"),
                "the podCIDR 169.254.3.0/24 cannot be used: its addresses are never routed",
            ),
        ] {
            let verdict = Case::new(&[named]).judge(&node(&[range]));
            assert_eq!(verdict.offered, [], "{range}");
            assert_eq!(verdict.problems.iter().map(ToString::to_string).collect::<Vec<_>>(), [sentence]);
        }
        let own_bridge = Case::new(&[("cni-mesh0", "10.244.1.1/24"), ("wwan0", "100.71.2.3/30")]);
        assert_eq!(own_bridge.judge(&node(&["10.244.1.0/24"])).problems, []);
    }

    #[test]
    fn a_node_without_a_range_and_one_of_another_machine_are_told() {
        let mut node = node(&[]);
        let said = Case::new(&[]).judge(&node).problems[0].to_string();
        assert!(said.contains("kube-controller-manager runs without --allocate-node-cidrs"), "{said}");
        node.spec.pod_cidr = "10.244.1.0/24".to_owned();
        node.status.node_info.machine_id = "4567".to_owned();
        let verdict = Case::new(&[]).judge(&node);
        assert_eq!(verdict.offered.len(), 1);
        assert_eq!(verdict.problems, [Problem::OtherMachine { name: "pi".to_owned() }]);
        node.status.node_info.machine_id = "0123".to_owned();
        assert_eq!(Case::new(&[]).judge(&node).problems, []);
    }
}
