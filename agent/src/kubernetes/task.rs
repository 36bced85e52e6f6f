//! Brings it all together: what was seen of the Node, what the mesh makes of its ranges, and what the host looks like.
//!
//! Each look takes everything there is to know and sets everything there is to set; it comes at every change, and now and
//! then without one.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use mesh_proto::{
    kubernetes::{ApiState, ApiStatus, KubernetesStatus, NetworkPolicies, PodNetworkState},
    status::{ConnectionState, Status},
};
use time::format_description::well_known::Rfc3339;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    KubernetesConfig, KubernetesHandle, Mesh,
    memory::{Memory, Remembered},
    objects::Node,
    owner::Owner,
    podnet::{self, MeshState, PodNetwork},
    ranges::{self, Problem, Surroundings, Verdict},
    tell::{Answers, Network, Notice, Severity, Wanted},
    trouble::Troubles,
    watch::{Presence, Seen},
};
use crate::os::{Host as _, linux::Netlink};

/// How often everything is looked at without any news: what others change on this host is put right as soon.
const INTERVAL: Duration = Duration::from_secs(5);
/// The same while the coordinator's answer is on its way.
const INTERVAL_PENDING: Duration = Duration::from_secs(2);
/// News that come together are looked at together.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a Node may take to appear, and to get its ranges, before that is trouble.
const APPEARS: Duration = Duration::from_secs(20);
/// How long the pod network may be down before the scheduler is told; a restart takes less.
const GRACE: Duration = Duration::from_secs(60);
/// An API server that is away is trouble only after so long, unless it refuses.
const AWAY: Duration = Duration::from_secs(30);
/// For so long what is over is to be told: in several attempts, if need be.
const TELLS_FOR: Duration = Duration::from_secs(60);
/// Where a machine has its number, unless this is a container.
const MACHINE_ID: &str = "/etc/machine-id";
/// Characters of it.
const MACHINE_ID_LEN: usize = 32;
/// Why a cluster with policies is not what its operator thinks.
const POLICIES: &str =
    "the cluster has NetworkPolicies, which the mesh does not enforce: run kube-network-policies beside it";

/// What the task is made of.
pub(super) struct Parts {
    pub(super) handle: KubernetesHandle,
    pub(super) memory: Memory,
    pub(super) seen: watch::Receiver<Seen>,
    pub(super) wanted: watch::Sender<Wanted>,
    pub(super) answers: watch::Receiver<Answers>,
    pub(super) socket: PathBuf,
}

/// The pod network of this node.
pub(super) struct Task<M> {
    config: KubernetesConfig,
    mesh: Arc<M>,
    parts: Parts,
    networks: Netlink,
    pods: PodNetwork,
    machine_id: Option<String>,
    /// The Node as it was last, here or in the memory.
    node: Option<Arc<Node>>,
    is_remembered: bool,
    offered: Option<Vec<IpNet>>,
    /// Whether the mesh was ready at the last look.
    was_ready: bool,
    troubles: Troubles,
    owner: Owner,
    /// What kept the agent from the API server, for an Event once it does not.
    untold: Option<Untold>,
    /// Since when what takes a while has been so.
    since: BTreeMap<&'static str, Instant>,
    /// What was said in the log.
    said: BTreeSet<String>,
}

/// Why the API server refused this agent.
struct Untold {
    error: String,
    /// When it took it again.
    since: Option<Instant>,
}

/// What one look found.
struct Look {
    state: PodNetworkState,
    usable: Vec<IpNet>,
    /// Whether the mesh has not said yet what becomes of the Node's ranges.
    awaits_mesh: bool,
    /// Whether another machine says that it is this Node.
    is_contended: bool,
    problems: Vec<String>,
    notices: Vec<Notice>,
}

impl<M: Mesh> Task<M> {
    /// Makes it; nothing is done yet.
    ///
    /// # Errors
    /// When the system does not let the host's networks be looked at.
    pub(super) fn new(config: KubernetesConfig, mesh: Arc<M>, parts: Parts) -> anyhow::Result<Self> {
        let pods = PodNetwork::new(config.places());
        let node = parts.memory.known().map(Remembered::node);
        Ok(Self {
            config,
            mesh,
            networks: Netlink::open("")?,
            pods,
            machine_id: machine_id(),
            is_remembered: node.is_some(),
            node,
            offered: None,
            was_ready: false,
            troubles: Troubles::default(),
            owner: Owner::default(),
            untold: None,
            since: BTreeMap::new(),
            said: BTreeSet::new(),
            parts,
        })
    }

    /// Runs until it is cancelled.
    pub(super) async fn run(mut self, cancel: CancellationToken) {
        loop {
            let wait = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                wait = self.look() => wait,
            };
            let until = Instant::now() + wait;
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                changed = self.parts.seen.changed() => if changed.is_err() { return },
                changed = self.parts.answers.changed() => if changed.is_err() { return },
                () = self.mesh.changed() => {}
                () = sleep_until(until) => {}
            }
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = sleep(PAUSE) => {}
            }
        }
    }

    /// Looks at everything, sets everything, and returns when to look again.
    async fn look(&mut self) -> Duration {
        let seen = self.parts.seen.borrow_and_update().clone();
        let answers = self.parts.answers.borrow_and_update().clone();
        let status = match self.mesh.status().await {
            Ok(status) => status,
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "the mesh says nothing of itself");
                return INTERVAL;
            }
        };
        let was_ready = std::mem::replace(&mut self.was_ready, status.this.ready);
        if status.this.ready && !was_ready {
            // Where the API server is reached over the mesh, there was no way to it until now.
            self.parts.handle.network_changed();
        }
        let mut look = self.look_at_node(&seen, &answers, &status).await;
        if let Some(error) = self.api_trouble(&seen) {
            look.problems.push(error);
        }
        look.problems.extend(answers.refused.iter().cloned());
        if answers.policies == NetworkPolicies::NotEnforced {
            look.problems.push(POLICIES.to_owned());
            look.notices.push(warning("MeshNetworkPolicyNotEnforced", POLICIES.to_owned()));
        }
        look.notices.extend(answers.refused.iter().map(|what| warning("MeshForbidden", what.clone())));
        look.notices.extend(self.refusal(&seen));
        look.notices.extend(self.troubles.observe(&status, std::time::Instant::now()));
        self.say(&look.problems);
        let condition = self.condition(&look, &status);
        let wanted = Wanted { condition, notices: look.notices };
        self.parts.wanted.send_if_modified(|current| {
            let is_news = *current != wanted;
            *current = wanted;
            is_news
        });
        let is_connected = status.this.coordinator.state == ConnectionState::Connected;
        let wait = match look.state {
            PodNetworkState::NotReady if look.awaits_mesh && is_connected => INTERVAL_PENDING,
            PodNetworkState::Ready
            | PodNetworkState::Waiting
            | PodNetworkState::NoPodRanges
            | PodNetworkState::Refused
            | PodNetworkState::NotReady
            | PodNetworkState::Unknown => INTERVAL,
        };
        self.show(&seen, &answers, Look { notices: Vec::new(), ..look });
        wait
    }

    /// Takes what was seen of the Node, and has mesh and host follow.
    async fn look_at_node(&mut self, seen: &Seen, answers: &Answers, status: &Status) -> Look {
        let name = self.config.node_name.clone();
        let absence = match &seen.node {
            Presence::Unknown => None,
            Presence::There(node) => {
                (self.node, self.is_remembered) = (Some(Arc::clone(node)), false);
                None
            }
            Presence::Absent if self.lasts("absent", true, APPEARS) => Some(Problem::NoNode { name }),
            Presence::Absent => None,
            Presence::Deleted => Some(Problem::NodeDeleted { name }),
        };
        self.lasts("absent", matches!(seen.node, Presence::Absent), APPEARS);
        let mut look = Look {
            state: PodNetworkState::Waiting,
            usable: Vec::new(),
            awaits_mesh: false,
            is_contended: false,
            problems: absence.iter().map(ToString::to_string).collect(),
            notices: Vec::new(),
        };
        let Some(node) = self.node.clone() else { return look };
        let services = self.service_ranges(answers);
        let mut verdict = self.judge(&node, &services, status).await;
        let other_machine = Problem::OtherMachine { name: node.metadata.name.clone() };
        let is_others = verdict.problems.contains(&other_machine);
        look.is_contended = self.owner.observe(is_others, std::time::Instant::now());
        if look.is_contended && !is_others {
            verdict.problems.insert(0, other_machine);
        }
        let has_none = verdict.problems.iter().any(|problem| matches!(problem, Problem::NoRanges { .. }));
        let tells_none = self.lasts("no ranges", has_none, APPEARS);
        for problem in &verdict.problems {
            if matches!(problem, Problem::NoRanges { .. }) && !tells_none {
                continue;
            }
            look.problems.push(problem.to_string());
            look.notices.push(warning(problem.reason(), problem.to_string()));
        }
        if self.offered.as_ref() != Some(&verdict.offered) {
            tracing::info!(ranges = verdict.offered.len(), "ranges for pods are offered to the mesh");
            self.mesh.offer_pods(&verdict.offered);
            self.offered = Some(verdict.offered.clone());
        }
        self.remember(&node, &verdict, &services);
        let has_own = !verdict.usable.is_empty() && !verdict.is_former;
        look.state = match () {
            () if node.pod_ranges().0.is_empty() => PodNetworkState::NoPodRanges,
            () if has_own => PodNetworkState::NotReady,
            () if verdict.offered.is_empty() || !verdict.problems.is_empty() => PodNetworkState::Refused,
            () => PodNetworkState::NotReady,
        };
        if !verdict.usable.is_empty() {
            let problems = self.pods.set(&self.desired(&verdict, services, status)).await;
            let conflist = self.config.cni_conf_dir.join(podnet::CONFLIST);
            if has_own && status.this.ready && conflist.exists() && !problems.iter().any(cuts_off) {
                look.state = PodNetworkState::Ready;
            }
            for problem in problems {
                look.problems.push(problem.to_string());
                look.notices.push(warning("MeshPodNetwork", problem.to_string()));
            }
        }
        look.awaits_mesh = !has_own;
        look.usable = verdict.usable;
        look
    }

    async fn judge(&mut self, node: &Node, services: &[IpNet], status: &Status) -> Verdict {
        let networks = self.networks.networks().await.unwrap_or_default();
        let nothing = BTreeSet::new();
        ranges::judge(
            node,
            &Surroundings {
                pod_ranges: &self.config.pod_ranges,
                service_ranges: services,
                mesh: &status.this.ranges,
                networks: &networks,
                answers: &status.this.advertised,
                accepted: self.parts.memory.known().map_or(&nothing, |known| &known.accepted),
                machine_id: self.machine_id.as_deref(),
            },
        )
    }

    fn service_ranges(&self, answers: &Answers) -> Vec<IpNet> {
        let remembered = || self.parts.memory.known().map(|known| known.service_ranges.clone());
        let said = || Some(answers.service_ranges.clone()).filter(|ranges| !ranges.is_empty());
        match self.config.service_ranges.is_empty() {
            true => said().or_else(remembered).unwrap_or_default(),
            false => self.config.service_ranges.clone(),
        }
    }

    fn remember(&mut self, node: &Node, verdict: &Verdict, services: &[IpNet]) {
        self.parts.memory.set(Remembered {
            node: self.config.node_name.clone(),
            uid: node.metadata.uid.clone(),
            accepted: verdict.usable.iter().copied().collect(),
            pod_ranges: node.pod_ranges().0,
            service_ranges: services.to_vec(),
        });
    }

    fn desired(&self, verdict: &Verdict, services: Vec<IpNet>, status: &Status) -> podnet::Desired {
        let this = &status.this;
        let others = this.advertised.iter().map(|answer| answer.prefix);
        let mut cluster_pods = self.config.pod_ranges.clone();
        if cluster_pods.is_empty() {
            // What is behind the other nodes, as far as it is known.
            cluster_pods = verdict.usable.iter().chain(&this.routes).copied().collect();
        }
        podnet::Desired {
            pods: verdict.usable.clone(),
            cluster_pods,
            services,
            mesh: this.ranges.clone(),
            offered: others.filter(|prefix| !verdict.offered.contains(prefix)).collect(),
            interface: this.interface.clone(),
            mtu: self.config.pod_mtu.unwrap_or(this.mtu),
            socket: self.parts.socket.clone(),
            mesh_state: if this.ready { MeshState::Ready } else { MeshState::NotReady },
        }
    }

    /// Returns what the scheduler is to know; `None` to leave it at what it knows.
    fn condition(&mut self, look: &Look, status: &Status) -> Option<Network> {
        let is_ready = look.state == PodNetworkState::Ready;
        let is_down = self.lasts("down", !is_ready, GRACE);
        if look.is_contended {
            // Whoever of the two has no network must not say so of the other's.
            return None;
        }
        if is_ready {
            let ranges: Vec<_> = look.usable.iter().map(ToString::to_string).collect();
            return Some(Network::Available(format!("the mesh carries the pods of {}", ranges.join(", "))));
        }
        let why = match look.problems.first() {
            Some(problem) => problem.clone(),
            None if !status.this.ready => "the mesh is not ready on this node".to_owned(),
            None => "the mesh has not accepted the podCIDR of this node yet".to_owned(),
        };
        is_down.then_some(Network::Unavailable(why))
    }

    /// Returns what is wrong with the API server, if that lasts or will not mend itself.
    fn api_trouble(&mut self, seen: &Seen) -> Option<String> {
        let is_away = self.lasts("away", seen.api.state == ApiState::Silent, AWAY);
        match seen.api.state {
            ApiState::Refuses => seen.api.error.clone(),
            ApiState::Silent if is_away => seen.api.error.clone(),
            ApiState::Silent | ApiState::Answers | ApiState::Unknown => None,
        }
    }

    /// Returns what the cluster is to be told of its own refusals: what RBAC does not permit at once, all else as soon as the
    /// API server takes this agent for who it is again.
    fn refusal(&mut self, seen: &Seen) -> Option<Notice> {
        let error = seen.api.error.clone();
        match seen.api.state {
            ApiState::Refuses if seen.api.knows_agent => error.map(|error| warning("MeshForbidden", error)),
            ApiState::Refuses => {
                self.untold = error.map(|error| Untold { error, since: None });
                None
            }
            ApiState::Silent | ApiState::Unknown => None,
            ApiState::Answers => {
                let untold = self.untold.as_mut()?;
                let message = format!("until now this node could not ask the API server: {}", untold.error);
                if untold.since.get_or_insert_with(Instant::now).elapsed() >= TELLS_FOR {
                    self.untold = None;
                }
                Some(warning("MeshAPIServerRefused", message))
            }
        }
    }

    /// Remembers since when something has been so, and returns whether it has for so long.
    fn lasts(&mut self, what: &'static str, is_so: bool, patience: Duration) -> bool {
        if !is_so {
            self.since.remove(what);
            return false;
        }
        self.since.entry(what).or_insert_with(Instant::now).elapsed() >= patience
    }

    /// Says in the log what is new.
    fn say(&mut self, problems: &[String]) {
        let now: BTreeSet<String> = problems.iter().cloned().collect();
        for problem in now.difference(&self.said) {
            tracing::warn!(problem, "pod network");
        }
        self.said = now;
    }

    fn show(&self, seen: &Seen, answers: &Answers, look: Look) {
        self.parts.handle.set(KubernetesStatus {
            node: self.config.node_name.clone(),
            state: look.state,
            pod_ranges: look.usable,
            api: ApiStatus {
                state: seen.api.state,
                address: seen.api.address.clone(),
                error: seen.api.error.clone(),
                last_answer: seen.api.last_answer.and_then(|at| at.format(&Rfc3339).ok()),
            },
            from_cache: self.is_remembered,
            network_policies: answers.policies,
            problems: look.problems,
        });
    }
}

/// Returns whether pods have no network, or not all of it, for this.
fn cuts_off(problem: &podnet::Problem) -> bool {
    matches!(
        problem,
        podnet::Problem::PluginMissing { .. }
            | podnet::Problem::PluginsBroken { .. }
            | podnet::Problem::OtherConfigurationFirst { .. }
            | podnet::Problem::K3sLooksElsewhere { .. }
            | podnet::Problem::Bridge { .. }
            | podnet::Problem::Filter { .. }
            | podnet::Problem::ForwardDropped { .. }
    )
}

fn warning(reason: &'static str, message: String) -> Notice {
    Notice { reason, message, severity: Severity::Warning }
}

/// Returns the number of this machine; a container has none, or an image's.
fn machine_id() -> Option<String> {
    let text = std::fs::read_to_string(MACHINE_ID).ok()?;
    let id = text.trim();
    let is_number = id.len() == MACHINE_ID_LEN && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_number.then(|| id.to_owned())
}
