//! An API server in the hands of the bench: as much of one as an agent meets that does Kubernetes, over the TLS that a
//! cluster has, so that no cluster has to be built to know what one costs an agent.
//!
//! It has one Node, as large as one is that has run pods for a while, and ranges of Services. It sets what it is told of
//! the Node's conditions, and a watch is told of that and of what kubelet says, more often than kubelet says it.

mod credentials;
mod http;
mod node;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use mesh_lab::Host;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use self::{
    credentials::Credentials,
    http::{Asked, Code},
};

/// The range of all pods: there is a /24 in it for each of several Nodes.
pub(super) const POD_RANGES: &str = "10.244.0.0/16";
/// That of Services.
const SERVICE_RANGE: &str = "10.96.0.0/12";
/// The version that the first list has.
const FIRST_VERSION: u64 = 1000;
/// How often kubelet says how the node is: ten seconds if something has changed, five minutes if not.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How often it is looked whether the server is to end.
const NAP: Duration = Duration::from_millis(50);

/// The server; it ends when it is dropped.
pub(super) struct ApiServer {
    kubeconfig: PathBuf,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    ends: AtomicBool,
    tls: Arc<ServerConfig>,
}

struct State {
    node: Value,
    version: u64,
}

impl ApiServer {
    /// Starts it on a host, for a Node of this name and number; its files are in this directory.
    pub(super) fn start(host: &Host, directory: &Path, (node, number): (&str, u8)) -> anyhow::Result<Self> {
        let listener = host.netns().enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
        let listener = listener.context("the API server's socket")?;
        listener.set_nonblocking(true)?;
        let server = SocketAddr::from((host.address(), listener.local_addr()?.port()));
        let Credentials { kubeconfig, tls } = Credentials::make(directory, server, node)?;
        let state = State { node: node::new(node, &format!("10.244.{number}.0/24")), version: FIRST_VERSION };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            ends: AtomicBool::new(false),
            tls: Arc::new(tls),
        });
        let of_thread = Arc::clone(&shared);
        let listener = thread::Builder::new()
            .name("api-server".to_owned())
            .spawn(move || of_thread.accept(&listener))?;
        Ok(Self { kubeconfig, shared, listener: Some(listener) })
    }

    /// How an agent asks it.
    pub(super) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        self.shared.changed.notify_all();
        if let Some(listener) = self.listener.take() {
            // One that has panicked has said so.
            let _ = listener.join();
        }
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        thread::scope(|scope| {
            while !self.ends.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        // An agent that ends in the middle of a request is no news here.
                        scope.spawn(move || drop(self.serve(stream)));
                    }
                    Err(_) => thread::sleep(NAP),
                }
            }
        });
    }

    /// Answers what is asked on a connection.
    fn serve(&self, stream: TcpStream) -> anyhow::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&self.tls))?, stream);
        while let Some(asked) = http::read(&mut stream)? {
            if asked.is_watch() {
                return self.watch(&mut stream, &asked);
            }
            let (code, document) = self.answer(&asked);
            http::answer(&mut stream, code, &document)?;
        }
        Ok(())
    }

    fn answer(&self, asked: &Asked) -> (Code, Value) {
        let mut state = self.state();
        let metadata = json!({"resourceVersion": state.version.to_string()});
        match (asked.method.as_str(), asked.path()) {
            ("GET", "/api/v1/nodes") => {
                (Code::Ok, json!({"kind": "NodeList", "metadata": metadata, "items": [state.node]}))
            }
            ("GET", "/apis/networking.k8s.io/v1/servicecidrs") => {
                let range = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": [SERVICE_RANGE]}});
                (Code::Ok, json!({"kind": "ServiceCIDRList", "metadata": metadata, "items": [range]}))
            }
            // As kubelet's own certificate is answered.
            ("GET", "/apis/networking.k8s.io/v1/networkpolicies") => (Code::Forbidden, refusal(asked)),
            ("PATCH", _) => {
                for condition in asked.body["status"]["conditions"].as_array().into_iter().flatten() {
                    node::set_condition(&mut state.node, condition);
                }
                state.version += 1;
                self.changed.notify_all();
                (Code::Ok, state.node.clone())
            }
            ("POST", _) => (Code::Created, asked.body.clone()),
            _ => (Code::Forbidden, refusal(asked)),
        }
    }

    /// Tells of the Node whenever it is another, until either side ends.
    fn watch(&self, stream: &mut (impl io::Read + io::Write), asked: &Asked) -> anyhow::Result<()> {
        http::begin(stream)?;
        let mut told = asked.version().unwrap_or(FIRST_VERSION);
        let mut beats = Instant::now();
        while !self.ends.load(Ordering::Relaxed) {
            let mut state = self.state();
            if beats.elapsed() >= HEARTBEAT {
                beats = Instant::now();
                state.version += 1;
                let version = state.version;
                node::beat(&mut state.node, version);
            }
            if state.version == told {
                drop(self.changed.wait_timeout(state, NAP));
                continue;
            }
            told = state.version;
            state.node["metadata"]["resourceVersion"] = json!(told.to_string());
            let event = json!({"type": "MODIFIED", "object": state.node});
            drop(state);
            http::chunk(stream, &format!("{event}\n"))?;
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // It is whole at any moment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refusal(asked: &Asked) -> Value {
    let message = format!("{} is forbidden", asked.path());
    json!({"kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403, "message": message})
}
