//! An API server in a test's hands: one Node, what the test says of it, and what it was asked.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::broadcast,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

/// What does not happen by then does not happen.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// Lines that wait for a watch.
const LINES: usize = 64;

/// What was asked.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) token: Option<String>,
    pub(super) content_type: Option<String>,
    pub(super) body: Value,
}

pub(super) struct State {
    pub(super) node: Option<Value>,
    pub(super) version: u64,
    /// Answered in place of anything else, by the beginning of the path and the method.
    pub(super) refusals: Vec<(Method, &'static str, u16)>,
    /// The token that is taken.
    pub(super) token: String,
    pub(super) policies: bool,
    pub(super) asked: Vec<Asked>,
}

/// The server; it is gone when this is dropped.
pub(super) struct FakeServer {
    pub(super) port: u16,
    state: Arc<Mutex<State>>,
    lines: broadcast::Sender<String>,
    task: JoinHandle<()>,
    tls: Option<TlsAcceptor>,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

impl FakeServer {
    pub(super) async fn start(tls: Option<TlsAcceptor>) -> Self {
        let state = State {
            node: None,
            version: 1,
            refusals: vec![],
            token: "good".to_owned(),
            policies: false,
            asked: vec![],
        };
        let (lines, _) = broadcast::channel(LINES);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(state));
        let task = tokio::spawn(serve(listener, Arc::clone(&state), lines.clone(), tls.clone()));
        Self { port, state, lines, task, tls }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Sets the Node, or deletes it, and tells those who watch.
    pub(super) fn set_node(&self, node: Option<Value>) {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        let before = state.node.take();
        let (kind, mut object) = match (before, node) {
            (None, Some(node)) => ("ADDED", node),
            (Some(_), Some(node)) => ("MODIFIED", node),
            (Some(before), None) => ("DELETED", before),
            (None, None) => return,
        };
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        if kind != "DELETED" {
            state.node = Some(object.clone());
        }
        drop(state);
        self.tell(json!({"type": kind, "object": object}));
    }

    /// Says a line to those who watch.
    pub(super) fn tell(&self, line: Value) {
        let _ = self.lines.send(format!("{line}\n"));
    }

    /// Is gone, and nobody answers at its port.
    pub(super) fn stop(&mut self) {
        self.task.abort();
        // A broadcast that is closed ends the watches.
        self.lines = broadcast::channel(LINES).0;
    }

    /// Is there again, at the same port.
    pub(super) async fn start_again(&mut self) {
        let bind = async {
            loop {
                match TcpListener::bind(("127.0.0.1", self.port)).await {
                    Ok(listener) => return listener,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let listener = timeout(PATIENCE, bind).await.unwrap();
        self.task =
            tokio::spawn(serve(listener, Arc::clone(&self.state), self.lines.clone(), self.tls.clone()));
    }

    /// Waits until something that the test looks for was asked.
    pub(super) async fn asked(&self, is_it: impl Fn(&Asked) -> bool) -> Asked {
        let look = async {
            loop {
                if let Some(asked) = self.state().asked.iter().find(|asked| is_it(asked)) {
                    return asked.clone();
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, look).await.expect("it is asked")
    }

    /// How often the Node was listed, and watched.
    pub(super) fn lists_and_watches(&self) -> (usize, usize) {
        let state = self.state();
        let nodes = state.asked.iter().filter(|asked| asked.path == "/api/v1/nodes");
        let (watches, lists): (Vec<_>, Vec<_>) = nodes.partition(|asked| asked.query.contains("watch=true"));
        (lists.len(), watches.len())
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Writes a kubeconfig with a token file beside it.
pub(super) fn kubeconfig(dir: &Path, server: &str, authority: &str) -> PathBuf {
    std::fs::write(dir.join("token"), "good\n").unwrap();
    let path = dir.join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
         contexts: [{{name: here, context: {{cluster: c, user: u}}}}]\n\
         clusters:\n- name: c\n  cluster:\n    server: {server}\n{authority}\
         users:\n- name: u\n  user:\n    tokenFile: token\n"
    );
    std::fs::write(&path, text).unwrap();
    path
}

/// A Node with these ranges.
pub(super) fn node(uid: &str, ranges: &[&str]) -> Value {
    let spec = match ranges.first() {
        Some(first) => json!({"podCIDR": first, "podCIDRs": ranges}),
        None => json!({}),
    };
    json!({"metadata": {"name": "pi", "uid": uid}, "spec": spec, "status": {}})
}

async fn serve(
    listener: TcpListener,
    state: Arc<Mutex<State>>,
    lines: broadcast::Sender<String>,
    tls: Option<TlsAcceptor>,
) {
    // Connections end with the server.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let (state, lines, tls) = (Arc::clone(&state), lines.clone(), tls.clone());
        connections.spawn(async move {
            match tls {
                None => answer_all(stream, state, lines).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        answer_all(stream, state, lines).await;
                    }
                }
            }
        });
    }
}

async fn answer_all<S>(stream: S, state: Arc<Mutex<State>>, lines: broadcast::Sender<String>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request| {
        let (state, lines) = (Arc::clone(&state), lines.clone());
        async move { Ok::<_, Infallible>(answer(request, &state, &lines).await) }
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(
    request: Request<Incoming>,
    state: &Mutex<State>,
    lines: &broadcast::Sender<String>,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let header = |name: &str| Some(head.headers.get(name)?.to_str().unwrap().to_owned());
    let body = body.collect().await.unwrap().to_bytes();
    let asked = Asked {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        token: header("authorization"),
        content_type: header("content-type"),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    };
    // Before it is looked at what there is: nothing is lost between the two.
    let receiver = lines.subscribe();
    let mut state = state.lock().unwrap();
    state.asked.push(asked.clone());
    if asked.token.as_deref() != Some(&format!("Bearer {}", state.token)) {
        return refuse(401);
    }
    let refused = |(method, path, _): &&(Method, &'static str, u16)| {
        asked.method == *method && asked.path.starts_with(path)
    };
    if let Some((_, _, code)) = state.refusals.iter().find(refused) {
        return refuse(*code);
    }
    let version = state.version;
    if asked.query.contains("watch=true") {
        assert!(asked.query.contains("fieldSelector=metadata.name%3Dpi"), "{}", asked.query);
        let from = asked.query.split("resourceVersion=").nth(1).unwrap().parse::<u64>().unwrap();
        // What happened between the list and the watch.
        let missed = state.node.clone().filter(|_| from < version);
        let missed = missed.map(|object| format!("{}\n", json!({"type": "MODIFIED", "object": object})));
        let body = stream::unfold((missed, receiver), |(missed, mut receiver)| async move {
            let line = match missed {
                Some(line) => line,
                None => receiver.recv().await.ok()?,
            };
            Some((Ok(Frame::data(Bytes::from(line))), (None, receiver)))
        });
        return Response::new(BodyExt::boxed_unsync(StreamBody::new(body)));
    }
    let document = match (asked.method.as_str(), asked.path.as_str()) {
        ("GET", "/api/v1/nodes") => {
            json!({"metadata": {"resourceVersion": version.to_string()}, "items": state.node.iter().collect::<Vec<_>>()})
        }
        ("GET", "/apis/networking.k8s.io/v1/networkpolicies") => {
            json!({"metadata": {}, "items": vec![json!({}); usize::from(state.policies)]})
        }
        ("GET", "/apis/networking.k8s.io/v1/servicecidrs") => {
            json!({"metadata": {}, "items": [{"spec": {"cidrs": ["10.96.0.0/12"]}}]})
        }
        ("PATCH", "/api/v1/nodes/pi/status") | ("POST", "/api/v1/namespaces/default/events") => json!({}),
        other => panic!("nobody asks for {other:?}"),
    };
    Response::new(BodyExt::boxed_unsync(Full::new(Bytes::from(document.to_string()))))
}

fn refuse(code: u16) -> Response<Body> {
    let status =
        json!({"kind": "Status", "status": "Failure", "code": code, "message": "so says the server"});
    let body = BodyExt::boxed_unsync(Full::new(Bytes::from(status.to_string())));
    Response::builder().status(code).body(body).unwrap()
}
