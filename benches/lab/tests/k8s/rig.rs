//! What these tests stand on: the village with a control plane on `pi` and five workers.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use mesh_lab::{
    Lab, MeshOptions, Village,
    kubernetes::{
        self, Arrangement, Cluster, ClusterOptions, Distribution, Families, PodNetwork, ProxyMode,
        RunningPod, daemon_set, pods,
    },
    nat::Protocol,
    topology::Ipv6,
    village::{self, COORDINATOR_HOST, COORDINATOR_NAME, NODES},
};

/// Where the control plane is.
pub(crate) const CONTROL_PLANE: &str = "pi";
/// All others.
pub(crate) const WORKERS: [&str; 5] = ["country", "office", "home-a", "home-b", "macbook"];
/// The worker whose site has IPv6, in a cluster that has it. It is the only one, so no path leads over it.
pub(crate) const ON_IPV6: &str = "country";
/// For what has no budget here, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// A cluster that runs.
pub(crate) struct Rig {
    pub(crate) cluster: Cluster,
    pub(crate) village: Village,
    workers: &'static [&'static str],
    distribution: Distribution,
    families: Families,
    started: Instant,
    lab: Lab,
}

impl Rig {
    /// Starts everything, and prints how long a worker takes from `join` until its Node is Ready.
    pub(crate) fn start(pods: PodNetwork, proxy: ProxyMode, families: Families) -> anyhow::Result<Self> {
        let workers = &WORKERS;
        let arranged = Arrangement { workers, pods, distribution: Distribution::Kubeadm, families };
        let rig = Self::prepare(&arranged, proxy)?;
        rig.start_control_plane()?;
        match pods {
            PodNetwork::Agents | PodNetwork::PodAgents => {}
            PodNetwork::DaemonSet => {
                daemon_set::prepare(&rig.village, &WORKERS, families)?;
                daemon_set::apply(&rig.cluster, &rig.lab, daemon_set::Overlay::HostAgent)?;
            }
        }
        rig.join_all()?;
        rig.wait_network()?;
        Ok(rig)
    }

    /// Builds the network and prepares the cluster; nothing runs yet.
    pub(crate) fn prepare(arranged: &Arrangement, proxy: ProxyMode) -> anyhow::Result<Self> {
        let Arrangement { workers, pods, distribution, families } = *arranged;
        let started = Instant::now();
        let lab = Lab::new("k8s")?;
        let mut options = MeshOptions::new(COORDINATOR_HOST, COORDINATOR_NAME, &NODES);
        // As people have it who want to be reached from everywhere.
        options.coordinator_args.push("--listen-tcp=443".to_owned());
        kubernetes::announce(&lab, &mut options, arranged)?;
        let mut topology = village::topology();
        for site in topology.sites.iter_mut().filter(|site| site.name == ON_IPV6) {
            site.ipv6 = if families.has_ipv6() { Ipv6::Filtered } else { Ipv6::None };
        }
        let village = Village::prepare_on(&lab, topology, options)?;
        let network = village.network();
        network
            .set_nat(CONTROL_PLANE, network.nat(CONTROL_PLANE)?.forward(Protocol::Tcp, 443, CONTROL_PLANE))?;
        let options = ClusterOptions {
            control_plane: CONTROL_PLANE.to_owned(),
            public_name: None,
            workers: workers.iter().copied().map(str::to_owned).collect(),
            distribution,
            proxy,
            families,
            images: match pods {
                PodNetwork::Agents => Vec::new(),
                PodNetwork::DaemonSet | PodNetwork::PodAgents => vec![daemon_set::image(&lab)?],
            },
        };
        let cluster = Cluster::prepare(village.network(), options)?;
        let rig = Self { cluster, village, workers, distribution, families, started, lab };
        rig.said("the network is built");
        Ok(rig)
    }

    /// Starts the coordinator, and the control plane beside it.
    pub(crate) fn start_control_plane(&self) -> anyhow::Result<()> {
        self.village.start_coordinator()?;
        self.village.join(CONTROL_PLANE)?;
        self.wait_agent(CONTROL_PLANE)?;
        self.cluster.start_control_plane(&self.village)?;
        self.said("the control plane runs");
        Ok(())
    }

    /// Lets all workers join, and prints how long each takes.
    pub(crate) fn join_all(&self) -> anyhow::Result<()> {
        let took = std::thread::scope(|scope| {
            let join = |worker: &'static str| -> anyhow::Result<Duration> {
                let joined = Instant::now();
                self.join(worker).with_context(|| format!("worker {worker}"))?;
                Ok(joined.elapsed())
            };
            let threads: Vec<_> =
                self.workers.iter().map(|&worker| (worker, scope.spawn(move || join(worker)))).collect();
            let took =
                |(worker, thread): (_, std::thread::ScopedJoinHandle<'_, anyhow::Result<Duration>>)| {
                    Ok((worker, thread.join().expect("a worker's thread does not panic")?))
                };
            threads.into_iter().map(took).collect::<anyhow::Result<BTreeMap<_, _>>>()
        })?;
        println!("from join to Ready, all at the same time: {took:.1?}");
        Ok(())
    }

    /// Lets a worker join the mesh, and then the cluster.
    pub(crate) fn join(&self, worker: &str) -> anyhow::Result<()> {
        if worker != CONTROL_PLANE {
            self.village.join(worker)?;
            self.wait_agent(worker)?;
        }
        self.cluster.start_worker(&self.village, worker)?;
        match self.distribution {
            Distribution::Kubeadm => {}
            Distribution::K3s => self.cluster.admit(worker, PATIENCE)?,
        }
        self.cluster.wait_ready(&[worker], PATIENCE)
    }

    /// The nodes with pods.
    pub(crate) fn workers(&self) -> &'static [&'static str] {
        self.workers
    }

    /// Which addresses the cluster has.
    pub(crate) fn families(&self) -> Families {
        self.families
    }

    /// The addresses of a node in the mesh, of the families that the cluster has.
    pub(crate) fn addresses(&self, node: &str) -> anyhow::Result<Vec<IpAddr>> {
        Ok(self.families.of_node(&self.village.node(node)?.addresses()?))
    }

    /// All nodes of the cluster, and the one of the control plane.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &'static str> {
        let workers = self.workers.iter().copied().filter(|worker| *worker != CONTROL_PLANE);
        workers.chain([CONTROL_PLANE])
    }

    /// Waits until every Node says that its network is there.
    pub(crate) fn wait_network(&self) -> anyhow::Result<()> {
        mesh_lab::mesh::wait_until(PATIENCE, "NetworkUnavailable is False everywhere", || {
            let nodes = self.cluster.kubectl()?.get(["nodes"])?;
            let is_there = |node| {
                kubernetes::condition(node, "NetworkUnavailable")
                    .is_some_and(|told| told["status"] == "False")
            };
            Ok(kubernetes::items(&nodes).filter(|node| is_there(node)).count() == self.workers.len())
        })
    }

    pub(crate) fn wait_agent(&self, node: &str) -> anyhow::Result<()> {
        let node = self.village.node(node)?;
        mesh_lab::mesh::wait_until(PATIENCE, "the agent is ready", || Ok(node.is_ready()))
    }

    /// Starts the lab's pods, and waits until they are ready on all workers.
    pub(crate) fn start_pods(&self) -> anyhow::Result<()> {
        let kubectl = self.cluster.kubectl()?;
        kubectl.apply(pods::WEB)?;
        kubectl.apply(&pods::dns(self.families))?;
        for app in ["web", "client", "host"] {
            self.cluster.wait_pods(app, self.workers.len(), PATIENCE)?;
        }
        self.cluster.wait_pods("coredns", 2, PATIENCE)?;
        Ok(())
    }

    /// The pods with addresses of their own: two on every worker.
    pub(crate) fn all_pods(&self) -> anyhow::Result<Vec<RunningPod>> {
        let (web, client) = (self.cluster.pods("web")?, self.cluster.pods("client")?);
        Ok(web.into_values().chain(client.into_values()).collect())
    }

    /// Where files may be made that are gone with the run.
    pub(crate) fn directory(&self) -> &Path {
        self.lab.directory()
    }

    /// Prints what memory the agents take: on the hosts, and in the pods beside them, if there are any.
    pub(crate) fn said_memory(&self) -> anyhow::Result<()> {
        let mut on_hosts = BTreeMap::new();
        for &worker in self.workers {
            let pid = self.village.node(worker)?.agent().pid().context("an agent does not run")?;
            on_hosts.insert(worker, resident(pid)?);
        }
        println!("resident memory of the agents on hosts, in KiB: {on_hosts:?}");
        let mut in_pods = BTreeMap::new();
        for pod in self.cluster.pods_with("app.kubernetes.io/name=mesh-agent")?.into_values() {
            let is_agent = |pid: &i32| {
                std::fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|name| name.trim() == "mesh-agent")
            };
            let pid = self.cluster.processes(&pod).into_iter().find(is_agent);
            in_pods.insert(
                pod.node.clone(),
                resident(pid.with_context(|| format!("no agent in {}", pod.name))?)?,
            );
        }
        if !in_pods.is_empty() {
            println!("resident memory of the agents in pods, in KiB: {in_pods:?}");
        }
        Ok(())
    }

    /// Prints what has been reached, and when.
    pub(crate) fn said(&self, what: &str) {
        println!("{:6.1} s  {what}", self.started.elapsed().as_secs_f64());
    }
}

/// What a process has in memory, in KiB.
fn resident(pid: i32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process has memory")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
