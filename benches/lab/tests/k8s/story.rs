//! One cluster, from nothing to its end: the checks build on each other, as a cluster's days do.

use mesh_lab::kubernetes::{Arrangement, Distribution, Families, PodNetwork, ProxyMode};

use crate::rig::{ON_IPV6, Rig};
use crate::{
    access, adjacency, bad_input, beneath, churn, coming, dual_stack, leaving, mtu, newer_runtime, outages,
    remade, two_of_a_name,
};

#[test]
fn a_cluster_behind_nats_is_as_one_in_a_room() {
    let rig = Rig::start(PodNetwork::Agents, ProxyMode::Nftables, Families::DualStack).unwrap();
    dual_stack::every_node_has_each(&rig).unwrap();
    rig.start_pods().unwrap();
    rig.said("all pods are ready");
    dual_stack::pods_reach_the_world(&rig).unwrap();
    rig.said("pods reach the world by the families that their node has");
    adjacency::every_pod_sees_every_pod(&rig).unwrap();
    rig.said("pods reach pods, and are seen as who they are");
    adjacency::pods_and_nodes_see_each_other(&rig).unwrap();
    rig.said("pods reach nodes, and nodes reach pods and nodes");
    adjacency::services_reach_every_backend(&rig).unwrap();
    rig.said("Services reach every backend from everywhere, by address, by name and by port");
    access::an_operator_reaches_every_pod(&rig).unwrap();
    rig.said("logs, exec and port-forward reach every worker");
    let web = rig.cluster.pods("web").unwrap();
    mtu::large_packets_pass(&rig, &web["country"], &web["home-a"]).unwrap();
    mtu::a_pod_is_told_what_is_too_large(&rig, &web["country"], &web["home-a"]).unwrap();
    beneath::a_vxlan_passes(&rig, ["country", "home-a"]).unwrap();
    rig.said("large packets pass, and a VXLAN");
    outages::streams_outlive_agents(&rig).unwrap();
    outages::streams_outlive_roaming(&rig).unwrap();
    outages::a_site_without_udp_stays(&rig).unwrap();
    rig.said("streams outlive agents and networks");
    outages::everybody_goes_on_without_control(&rig).unwrap();
    rig.said("the coordinator and the API server were away");
    newer_runtime::it_is_told_and_may_clean_up(&rig).unwrap();
    rig.said("a runtime of CNI 1.1 was told of a dead agent, and freed what no pod has");
    bad_input::each_is_told_and_nothing_stops(&rig).unwrap();
    rig.said("what somebody broke was told, and nothing stopped");
    two_of_a_name::the_first_one_stays(&rig).unwrap();
    rig.said("two machines had one name");
    remade::everything_follows_other_ranges(&rig).unwrap();
    rig.said("a Node was made again with other ranges");
    outages::a_worker_reboots(&rig).unwrap();
    rig.said("a worker is back after a reboot");
    churn::addresses_are_given_back(&rig).unwrap();
    rig.said("no address is lost");
    leaving::nothing_is_left(&rig, "home-b").unwrap();
    rig.said("a node that left is as it was before");
    coming::a_fresh_worker_has_pods(&rig, "home-b").unwrap();
    dual_stack::every_node_has_each(&rig).unwrap();
    rig.said("a fresh node came in its place");
    rig.said_memory().unwrap();
}

#[test]
fn a_daemon_set_does_the_cluster_s_part_beside_agents_of_the_hosts() {
    let rig = Rig::start(PodNetwork::DaemonSet, ProxyMode::Iptables, Families::Ipv6First).unwrap();
    dual_stack::what_a_pod_may_not_set_is_told(&rig).unwrap();
    rig.said("a setting that a pod may not change was told, and made");
    rig.start_pods().unwrap();
    rig.said("all pods are ready");
    dual_stack::pods_reach_the_world(&rig).unwrap();
    rig.said("pods reach the world by the families that their node has");
    adjacency::every_pod_sees_every_pod(&rig).unwrap();
    rig.said("pods reach pods, and are seen as who they are");
    adjacency::services_reach_every_backend(&rig).unwrap();
    rig.said("Services reach every backend from everywhere, by address, by name and by port");
    access::an_operator_reaches_every_pod(&rig).unwrap();
    rig.said("logs, exec and port-forward reach every worker");
    bad_input::somebody_makes_a_policy(&rig).unwrap();
    outages::streams_outlive_a_rollout(&rig).unwrap();
    rig.said("a stream outlives a rollout of the DaemonSet");
    bad_input::policies_are_told(&rig).unwrap();
    rig.said("policies that nothing enforces are told");
    rig.said_memory().unwrap();
}

#[test]
fn a_cluster_of_ipv6_alone_is_as_any_other() {
    let arranged = Arrangement {
        workers: &[ON_IPV6, "office"],
        pods: PodNetwork::Agents,
        distribution: Distribution::Kubeadm,
        families: Families::Ipv6,
    };
    let rig = Rig::prepare(&arranged, ProxyMode::Nftables).unwrap();
    rig.start_control_plane().unwrap();
    rig.join_all().unwrap();
    rig.wait_network().unwrap();
    dual_stack::every_node_has_each(&rig).unwrap();
    rig.start_pods().unwrap();
    rig.said("all pods are ready");
    dual_stack::pods_reach_the_world(&rig).unwrap();
    adjacency::every_pod_sees_every_pod(&rig).unwrap();
    adjacency::pods_and_nodes_see_each_other(&rig).unwrap();
    rig.said("pods reach pods, nodes and the world, and are seen as who they are");
    adjacency::services_reach_every_backend(&rig).unwrap();
    rig.said("Services reach every backend from everywhere, by address, by name and by port");
    access::an_operator_reaches_every_pod(&rig).unwrap();
    rig.said("logs, exec and port-forward reach every worker");
}
