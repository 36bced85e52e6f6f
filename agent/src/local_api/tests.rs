//! The local API over a real socket, with an agent that is made up.

use std::{path::Path, sync::Arc, time::Duration};

use mesh_proto::{
    kubernetes::{ApiStatus, KubernetesStatus, NetworkPolicies, PodNetworkState},
    netreport::NetReport,
    status::Status,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Agent, ApiError, Beside, Client, ClientError, HOST, PingReply, Report, Why, serve};
use crate::view;

struct MadeUp(Status);

impl Agent for MadeUp {
    async fn status(&self) -> anyhow::Result<Status> {
        Ok(self.0.clone())
    }

    async fn netcheck(&self) -> Result<NetReport, ApiError> {
        Err(ApiError::Internal { message: "made up".to_owned() })
    }

    async fn ping(&self, node: &str, _: Duration) -> Result<PingReply, ApiError> {
        Err(ApiError::Timeout { node: node.to_owned() })
    }

    async fn set_kubernetes(&self, beside: Beside) -> Result<(), ApiError> {
        match beside.pods {
            Some(pods) if pods.is_empty() => Ok(()),
            Some(_) | None => Err(ApiError::BadRequest { message: "made up".to_owned() }),
        }
    }

    async fn report(&self) -> anyhow::Result<Report> {
        anyhow::bail!("made up")
    }

    async fn why(&self, node: &str) -> Result<Why, ApiError> {
        Err(ApiError::UnknownNode { node: node.to_owned(), known: vec!["office".to_owned()] })
    }
}

fn start(folder: &Path) -> (std::path::PathBuf, CancellationToken, TaskTracker) {
    let socket = folder.join("sub/agent.sock");
    let (cancel, tracker) = (CancellationToken::new(), TaskTracker::new());
    let agent = Arc::new(MadeUp(view::document()));
    serve(socket.clone(), agent, cancel.clone(), &tracker).unwrap();
    (socket, cancel, tracker)
}

async fn raw(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    // The server may close before all of a garbage request is written.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.expect("an end");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn documents_and_errors_cross() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, cancel, tracker) = start(folder.path());
    let client = Client::new(&socket);
    assert_eq!(client.status().await.unwrap(), view::document());
    client.live().await.unwrap();
    let error = client.why("offfice").await.unwrap_err();
    assert_eq!(error.to_string(), "no node is called offfice; there are: office");
    let error = client.ping("office", Duration::from_millis(1)).await.unwrap_err();
    assert!(matches!(error, ClientError::Api(ApiError::Timeout { .. })), "{error}");
    assert!(matches!(
        client.why("../status").await.unwrap_err(),
        ClientError::Api(ApiError::BadRequest { .. })
    ));
    let status = KubernetesStatus {
        node: "pi".to_owned(),
        state: PodNetworkState::Ready,
        pod_ranges: vec![],
        api: ApiStatus::default(),
        from_cache: false,
        network_policies: NetworkPolicies::None,
        problems: vec![],
    };
    client.set_kubernetes(&Beside { pods: Some(vec![]), status: status.clone() }).await.unwrap();
    let error = client.set_kubernetes(&Beside { pods: None, status }).await.unwrap_err();
    assert!(matches!(error, ClientError::Api(ApiError::BadRequest { .. })), "{error}");
    cancel.cancel();
    tracker.close();
    tracker.wait().await;
    assert!(!socket.exists());
    let error = client.status().await.unwrap_err().to_string();
    assert!(error.contains("no agent answers at") && error.contains("agent.sock"), "{error}");
}

#[tokio::test]
async fn what_a_web_page_sends_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, ..) = start(folder.path());
    for headers in [
        "Host: evil.example".to_owned(),
        "Accept: */*".to_owned(),
        format!("Host: {HOST}\r\nOrigin: http://evil.example"),
        format!("Host: {HOST}\r\nReferer: http://evil.example/"),
    ] {
        let answer = raw(&socket, format!("GET /v1/status HTTP/1.1\r\n{headers}\r\n\r\n").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{headers}: {answer}");
    }
    let absolute = format!("GET http://{HOST}/v1/status HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    assert!(raw(&socket, absolute.as_bytes()).await.starts_with("HTTP/1.1 403"));
    let good = format!("GET /v1/status HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    assert!(raw(&socket, good.as_bytes()).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn garbage_harms_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, ..) = start(folder.path());
    for len in [0, 1, 100, 100_000] {
        let garbage: Vec<u8> = (0..len).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect();
        let answer = raw(&socket, &garbage).await;
        assert!(!answer.starts_with("HTTP/1.1 2"), "{len} bytes: {answer}");
    }
    Client::new(&socket).live().await.unwrap();
}

#[tokio::test]
async fn a_dead_agents_socket_is_replaced_and_a_live_ones_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let (cancel, tracker) = (CancellationToken::new(), TaskTracker::new());
    let agent = || Arc::new(MadeUp(view::document()));
    serve(socket.clone(), agent(), cancel.clone(), &tracker).unwrap();
    let error = serve(socket, agent(), cancel, &tracker).unwrap_err().to_string();
    assert!(error.contains("another agent listens"), "{error}");
}
