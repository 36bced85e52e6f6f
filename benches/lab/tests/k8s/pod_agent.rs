//! Hosts without an agent: it runs in a pod of the image, and makes the network that the cluster's pods wait for.
//!
//! A kubelet reaches the API server by its public name, where the router of `pi` forwards the port, and does not know the
//! mesh address that its node will have.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mesh_lab::kubernetes::daemon_set::{self, Overlay};
use mesh_lab::kubernetes::pods;
use mesh_lab::kubernetes::{self, Cluster, ClusterOptions, Distribution, Families, ProxyMode};
use mesh_lab::mesh::wait_until;
use mesh_lab::nat::Protocol;
use mesh_lab::topology::Host;
use mesh_lab::village::{COORDINATOR_HOST, COORDINATOR_NAME, NODES};
use mesh_lab::{Lab, MeshOptions, Village};

use crate::dual_stack::has_each;
use crate::rig::{CONTROL_PLANE, PATIENCE};
use crate::talk::{asks, goes_on, stream};

/// Hosts without an agent, at different sites.
const WORKERS: [&str; 2] = ["country", "home-b"];
/// Kubelets have addresses of one of them until they are told those in the mesh.
const FAMILIES: Families = Families::DualStack;
/// Where the API server is.
const API_PORT: u16 = 6443;
/// What the agents and the pod network leave on a host that nobody cleans up: interfaces, and directories.
const INTERFACES: [&str; 2] = ["mesh0", "cni-mesh0"];
const DIRECTORIES: [&str; 5] =
    ["/etc/cni/net.d", "/opt/cni/bin", "/run/cni", "/var/lib/mesh-agent", "/run/mesh-agent"];
/// The user as which the coordinator asks it.
const COORDINATOR: &str = "mesh-coordinator";
/// Who has no business with the tokens of others.
const STRANGER: &str = "office";
/// After an event, until a stream is asked how long it was silent.
const AFTERMATH: Duration = Duration::from_secs(1);

/// The guide's own words, for one host.
const CLEAN_UP: &str = r#"
ctr -n k8s.io run --rm --net-host --cap-add CAP_NET_ADMIN --cap-add CAP_NET_RAW \
  --mount type=bind,src=/etc/cni/net.d,dst=/etc/cni/net.d,options=rbind:rw \
  --mount type=bind,src=/opt/cni/bin,dst=/opt/cni/bin,options=rbind:rw \
  --mount type=bind,src=/run/cni,dst=/run/cni,options=rbind:rw \
  "$IMAGE" mesh-clean-up /usr/bin/mesh-agent remove-pod-network --kubernetes
rm -rf /var/lib/mesh-agent/* /run/mesh-agent/*
"#;

struct Pods {
    cluster: Cluster,
    village: Village,
    started: Instant,
    lab: Lab,
}

#[test]
fn an_agent_in_a_pod_makes_the_network_of_its_node() {
    let rig = Pods::start().unwrap();
    rig.give_join_token().unwrap();
    daemon_set::apply(&rig.cluster, &rig.lab, Overlay::PodAgent).unwrap();
    rig.wait_network().unwrap();
    rig.said("the agents have joined with a token, and all Nodes are Ready");
    rig.nodes_move_into_the_mesh().unwrap();
    rig.said("the Nodes are known by their mesh addresses");
    rig.pods_see_each_other().unwrap();
    rig.said("pods reach pods, and are seen as who they are");
    rig.a_stream_outlives_a_rollout().unwrap();
    rig.said("a stream outlives a rollout of the DaemonSet");
    rig.workers_reboot().unwrap();
    rig.said("the workers are back after a reboot");
    rig.everything_is_taken_back(Overlay::PodAgent).unwrap();
    rig.said("nothing is left on the hosts");
    rig.join_with_service_accounts().unwrap();
    rig.said("the agents have joined with their ServiceAccount's tokens");
    rig.other_tokens_are_refused().unwrap();
    rig.said("other tokens are refused, each with its reason");
}

impl Pods {
    /// Starts everything but the DaemonSet.
    fn start() -> anyhow::Result<Self> {
        let started = Instant::now();
        let lab = Lab::new("pods")?;
        let mut options = MeshOptions::new(COORDINATOR_HOST, COORDINATOR_NAME, &NODES);
        for range in [kubernetes::POD_RANGE, kubernetes::POD_RANGE_V6] {
            options.coordinator_args.push(format!("--pod-range={range}"));
        }
        let kubeconfig = kubernetes::kubeconfig_of(&lab, COORDINATOR);
        options.coordinator_args.push(format!("--kubernetes-kubeconfig={}", kubeconfig.display()));
        let village = Village::prepare_with(&lab, options)?;
        let network = village.network();
        let router = network.nat(CONTROL_PLANE)?.forward(Protocol::Tcp, API_PORT, CONTROL_PLANE);
        network.set_nat(CONTROL_PLANE, router)?;
        let options = ClusterOptions {
            control_plane: CONTROL_PLANE.to_owned(),
            public_name: Some(COORDINATOR_NAME.to_owned()),
            workers: WORKERS.map(str::to_owned).to_vec(),
            distribution: Distribution::Kubeadm,
            proxy: ProxyMode::Nftables,
            families: FAMILIES,
            images: vec![daemon_set::image(&lab)?],
        };
        let cluster = Cluster::prepare(network, options)?;
        daemon_set::prepare(&village, &WORKERS, FAMILIES)?;
        for worker in WORKERS {
            // As the guide has it: a pod may not change it.
            network.host(worker)?.netns().sysctl(&[("net.ipv6.conf.eth0.accept_ra", "2")])?;
        }
        let rig = Self { cluster, village, started, lab };
        rig.village.start_coordinator()?;
        rig.village.join(CONTROL_PLANE)?;
        let agent = rig.village.node(CONTROL_PLANE)?;
        wait_until(PATIENCE, "the agent is ready", || Ok(agent.is_ready()))?;
        rig.cluster.start_control_plane(&rig.village)?;
        for worker in WORKERS {
            rig.cluster.start_bare_worker(worker)?;
        }
        rig.said("the control plane and kubelets run");
        Ok(rig)
    }

    /// As the guide has it: a Secret with the token, and a ConfigMap with the coordinator.
    fn give_join_token(&self) -> anyhow::Result<()> {
        let line = self.village.token(&["--uses", &WORKERS.len().to_string()])?;
        let [coordinator, token, hash] = words(&line)?;
        let [token, hash] = [literal("MESH_TOKEN", token), literal("MESH_CA_CERT_HASH", hash)];
        self.create(&["namespace", daemon_set::NAMESPACE])?;
        self.create(&["secret", "generic", "mesh-join", &token, &hash])?;
        self.create(&["configmap", "mesh-join", &literal("MESH_COORDINATOR", coordinator)])
    }

    /// And with no token at all. The machines are new to the mesh, as after the clean-up.
    fn join_with_service_accounts(&self) -> anyhow::Result<()> {
        for worker in WORKERS {
            self.village.administer(["node", "remove", worker])?.success()?;
        }
        self.cluster.make_user(COORDINATOR)?;
        daemon_set::apply_coordinator(&self.cluster)?;
        let line = self.village.token(&[])?;
        let [coordinator, _, hash] = words(&line)?;
        let coordinator = literal("MESH_COORDINATOR", coordinator);
        self.create(&["namespace", daemon_set::NAMESPACE])?;
        self.create(&["configmap", "mesh-join", &coordinator, &literal("MESH_CA_CERT_HASH", hash)])?;
        daemon_set::apply(&self.cluster, &self.lab, Overlay::ServiceAccount)?;
        for worker in WORKERS {
            let node = self.village.node(worker)?;
            wait_until(PATIENCE, "the agent is ready", || Ok(node.is_ready()))?;
        }
        self.wait_network()
    }

    /// With the real API server's word on each.
    fn other_tokens_are_refused(&self) -> anyhow::Result<()> {
        let audience = format!("--audience={COORDINATOR}");
        let namespace = format!("--namespace={}", daemon_set::NAMESPACE);
        let kubectl = self.cluster.kubectl()?;
        let made = |args: &[&str]| kubectl.run(["create", "token"].iter().chain(args));
        let read = "cat /var/lib/kubelet/pods/*/volumes/kubernetes.io~projected/mesh-token/token";
        let pods = self.cluster.worker(WORKERS[0])?.command("sh")?.args(["-c", read]).output()?.success()?;
        for (token, reason) in [
            (made(&["mesh-agent", &namespace])?, "and not for mesh-coordinator".to_owned()),
            (made(&["mesh-agent", &namespace, &audience])?, "the token names no node".to_owned()),
            (
                made(&["default", &audience])?,
                "is of system:serviceaccount:default:default, and not of the ServiceAccount".to_owned(),
            ),
            (pods.stdout, format!("of a pod on {}, which may not join as {STRANGER}", WORKERS[0])),
            ("e30.e30.c2ln".to_owned(), "and not for mesh-coordinator".to_owned()),
        ] {
            let line = self.village.token(&[])?;
            let [coordinator, _, hash] = words(&line)?;
            let node = self.village.node(STRANGER)?;
            let file = node.directory().join("token");
            std::fs::write(&file, token)?;
            let join = format!("mesh-agent join {coordinator} --ca-cert-hash {hash}");
            let join = format!("{join} --service-account-token {}", file.display());
            let refused = node.try_join(&join)?;
            ensure!(
                refused.code() == 1 && refused.stderr.contains(&reason),
                "not refused because of {reason:?}: {refused:?}"
            );
            ensure!(!node.state_dir().exists(), "a refused join leaves something");
        }
        Ok(())
    }

    /// Makes an object in the namespace of the manifests.
    fn create(&self, what: &[&str]) -> anyhow::Result<()> {
        let args = ["--namespace", daemon_set::NAMESPACE, "create"].iter().chain(what);
        self.cluster.kubectl()?.run(args).map(drop)
    }

    /// Waits until all Nodes are Ready and have their network, and prints how long that took.
    fn wait_network(&self) -> anyhow::Result<()> {
        let applied = Instant::now();
        self.cluster.wait_ready(&WORKERS, PATIENCE)?;
        wait_until(PATIENCE, "NetworkUnavailable is False everywhere", || {
            let nodes = self.cluster.kubectl()?.get(["nodes"])?;
            let is_there = |node| {
                kubernetes::condition(node, "NetworkUnavailable")
                    .is_some_and(|told| told["status"] == "False")
            };
            Ok(kubernetes::items(&nodes).filter(|node| is_there(node)).count() == WORKERS.len())
        })?;
        println!("from the manifests to Ready, both nodes: {:.1?}", applied.elapsed());
        WORKERS.iter().try_for_each(|worker| has_each(&self.village, &self.cluster, FAMILIES, worker))
    }

    /// Both ways of the guide: a name in `/etc/hosts`, which kubelet looks up, and `--node-ip` with a restart of kubelet.
    fn nodes_move_into_the_mesh(&self) -> anyhow::Result<()> {
        let [by_name, by_flag] = WORKERS;
        for worker in WORKERS {
            let own = IpAddr::from(self.village.network().host(worker)?.address());
            ensure!(self.internal_addresses(worker)? == [own], "{worker} is not at its site's address");
        }
        let started = Instant::now();
        let host = self.village.network().host(by_name)?;
        host.set_hosts_entry(by_name, Some(self.village.node(by_name)?.address()?.into()))?;
        self.cluster.set_node_ip(by_flag, &self.village.node(by_flag)?.addresses()?)?;
        for worker in [by_flag, by_name] {
            self.wait_in_the_mesh(worker)?;
            println!("{worker} is at its mesh address after {:.1?}", started.elapsed());
        }
        self.cluster.wait_ready(&WORKERS, PATIENCE)
    }

    /// Waits until a Node is where its kubelet was told. By its name it finds one address, by the flag both.
    fn wait_in_the_mesh(&self, worker: &str) -> anyhow::Result<()> {
        let mut addresses = self.village.node(worker)?.addresses()?;
        if worker == WORKERS[0] {
            addresses.truncate(1);
        }
        wait_until(PATIENCE, "a Node is at its mesh address", || {
            let known = self.internal_addresses(worker)?;
            ensure!(known == addresses, "{worker} is at {known:?}, and not at {addresses:?}");
            Ok(true)
        })
    }

    fn internal_addresses(&self, worker: &str) -> anyhow::Result<Vec<IpAddr>> {
        let node = self.cluster.kubectl()?.get(["node", worker])?;
        let addresses = node["status"]["addresses"].as_array().context("a Node without addresses")?;
        let internal = addresses.iter().filter(|address| address["type"] == "InternalIP");
        internal
            .map(|address| Ok(address["address"].as_str().context("an address is text")?.parse()?))
            .collect()
    }

    /// Both ways, and as the operator sees them.
    fn pods_see_each_other(&self) -> anyhow::Result<()> {
        let kubectl = self.cluster.kubectl()?;
        kubectl.apply(pods::WEB)?;
        let web = self.cluster.wait_pods("web", WORKERS.len(), PATIENCE)?;
        for from in web.values() {
            ensure!(from.addresses.len() == 2, "{from:?} has not both families");
            web.values().try_for_each(|to| asks(&self.cluster, from, to))?;
            ensure!(kubectl.run(["logs", &from.name])? == "started\n", "{} logs something else", from.name);
        }
        Ok(())
    }

    fn a_stream_outlives_a_rollout(&self) -> anyhow::Result<()> {
        let web = self.cluster.pods("web")?;
        let [from, to] = WORKERS.map(|worker| &web[worker]);
        let stream = stream(&self.cluster, from, to)?;
        let namespace = ["--namespace", daemon_set::NAMESPACE, "rollout"];
        let kubectl = self.cluster.kubectl()?;
        kubectl.run(namespace.into_iter().chain(["restart", daemon_set::NAME]))?;
        wait_until(PATIENCE, "the rollout is over", || {
            let status = ["status", "--watch=false", daemon_set::NAME];
            Ok(kubectl.run(namespace.into_iter().chain(status))?.contains("successfully rolled out"))
        })?;
        std::thread::sleep(AFTERMATH);
        goes_on(&stream)?;
        println!("gap during a rollout of the agents: {:.0?}", stream.take_longest());
        stream.finish().context("the stream")
    }

    /// All workers lose power at the same time. Nobody has a hand in what comes after it: kubelets start the agents without the
    /// mesh, at whose addresses the Nodes are.
    fn workers_reboot(&self) -> anyhow::Result<()> {
        for worker in WORKERS {
            let machine = self.cluster.worker(worker)?;
            machine.kill()?;
            machine.forget()?;
            let run = self.village.node(worker)?.directory();
            std::fs::remove_dir_all(run)?;
            std::fs::create_dir(run)?;
        }
        let started = Instant::now();
        for worker in WORKERS {
            self.cluster.worker(worker)?.resume()?;
        }
        for worker in WORKERS {
            let node = self.village.node(worker)?;
            wait_until(PATIENCE, "the agent is ready", || Ok(node.is_ready()))?;
        }
        println!("from power-on until both agents are ready: {:.1?}", started.elapsed());
        // Before, the API server asks a kubelet at its site's address, and waits for half a minute.
        WORKERS.iter().try_for_each(|worker| self.wait_in_the_mesh(worker))?;
        println!("from power-on until both Nodes are in the mesh: {:.1?}", started.elapsed());
        wait_until(PATIENCE, "pods see each other again", || self.pods_see_each_other().map(|()| true))?;
        println!("from power-on until pods see each other: {:.1?}", started.elapsed());
        self.cluster.wait_ready(&WORKERS, PATIENCE)
    }

    /// As the guide has it: the manifests, and then what is on each host.
    fn everything_is_taken_back(&self, overlay: Overlay) -> anyhow::Result<()> {
        let kubectl = self.cluster.kubectl()?;
        kubectl.run(["delete", "daemonset", "--all", "--wait"])?;
        wait_until(PATIENCE, "the pods are gone", || {
            Ok(kubernetes::items(&kubectl.get(["pods"])?).next().is_none())
        })?;
        daemon_set::delete(&self.cluster, &self.lab, overlay)?;
        let left = kubectl.run(["get", "all,configmaps,secrets", "--namespace", daemon_set::NAMESPACE])?;
        ensure!(left.is_empty(), "objects are left: {left}");
        for worker in WORKERS {
            let host = self.village.network().host(worker)?;
            ensure!(link_is_there(host, "cni-mesh0")?, "{worker} has no bridge even before");
            let command = self.cluster.worker(worker)?.command("sh")?;
            command.args(["-c", CLEAN_UP]).env("IMAGE", daemon_set::IMAGE).output()?.success()?;
            for interface in INTERFACES {
                ensure!(!link_is_there(host, interface)?, "{interface} is left on {worker}");
            }
            for (program, args) in [
                ("nft", &["list", "tables"][..]),
                ("iptables-save", &[]),
                ("ip6tables-save", &[]),
                ("ip", &["rule", "show"]),
                ("ip", &["-6", "rule", "show"]),
                ("ip", &["route", "show", "table", "all"]),
                ("ip", &["-6", "route", "show", "table", "all"]),
            ] {
                let said = host.command(program).args(args).output()?.success()?.stdout;
                ensure!(!said.contains("mesh"), "{program} shows what is left on {worker}: {said}");
            }
            for directory in DIRECTORIES {
                let left = host.command("find").args([directory, "-type", "f"]).output()?.success()?.stdout;
                ensure!(left.is_empty(), "files are left on {worker}: {left}");
            }
        }
        Ok(())
    }

    fn said(&self, what: &str) {
        println!("{:6.1} s  {what}", self.started.elapsed().as_secs_f64());
    }
}

/// The coordinator, the token and the hash of a join line.
fn words(line: &str) -> anyhow::Result<[&str; 3]> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        [_, _, coordinator, "--token", token, "--ca-cert-hash", hash] => Ok([coordinator, token, hash]),
        _ => anyhow::bail!("an unknown join line: {line}"),
    }
}

fn literal(name: &str, value: &str) -> String {
    format!("--from-literal={name}={value}")
}

fn link_is_there(host: &Host, name: &str) -> anyhow::Result<bool> {
    Ok(host.command("ip").args(["link", "show", name]).output()?.code() == 0)
}
