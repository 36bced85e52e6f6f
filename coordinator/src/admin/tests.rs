//! The API through its socket.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt, time::Duration};

use mesh_proto::{
    key::{KeyPin, NodeKey, PublicKey},
    netmap::NodeId,
    token::JoinToken,
};
use mesh_unixapi::Credentials;
use rustix::{
    process::{Gid, Uid},
    thread::{set_thread_res_gid, set_thread_res_uid},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::watch,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{AdminInfo, AdminServer, Client, ClientError, HOST, TokenRequest, join_command, socket_path};
use crate::{
    identity::Identity,
    registry::{MeshOptions, Registry, RoutePolicy, TokenSpec},
};

/// A user who is neither root nor runs tests or the service.
const STRANGER: u32 = 65_533;

/// A user who runs the service and no tests.
const SERVICE: u32 = 65_532;

struct Rig {
    dir: TempDir,
    registry: Registry,
    online: watch::Sender<BTreeSet<NodeId>>,
    cancel: CancellationToken,
    server: JoinHandle<()>,
}

impl Rig {
    async fn start() -> Self {
        Self::start_as(Credentials::own()).await
    }

    async fn start_as(service: Credentials) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::load_or_create(dir.path()).unwrap();
        let options = MeshOptions {
            ipv4: "10.90.0.0/16".parse().unwrap(),
            coordinators: vec!["pi.example:7443".to_owned()],
            relay_name: "pi".to_owned(),
            routes: RoutePolicy::default(),
        };
        let registry = Registry::open(dir.path(), options.clone()).await.unwrap();
        let online = watch::Sender::new(BTreeSet::new());
        let info = AdminInfo { identity, coordinators: options.coordinators, online: online.subscribe() };
        let cancel = CancellationToken::new();
        let server = AdminServer::bind(dir.path(), registry.clone(), info).unwrap().run_by(service);
        let server = tokio::spawn(server.run(cancel.clone()));
        Self { dir, registry, online, cancel, server }
    }

    fn client(&self) -> Client {
        Client::new(self.dir.path())
    }

    /// Makes a token by the API and joins a node with it.
    async fn join(&self, n: u8, tags: &[&str]) {
        let tags = tags.iter().map(ToString::to_string).collect();
        let reply = self.client().create_token(&TokenRequest { ttl_s: 60, uses: 1, tags }).await.unwrap();
        let words: Vec<_> = reply.join.split(' ').collect();
        let token: JoinToken = words[4].parse().unwrap();
        let name = format!("n{n}").parse().unwrap();
        self.registry.join(NodeKey([n; 32]), token, name, PublicKey([n; 32])).await.unwrap();
    }

    /// Sends a request as it is written and returns the answer's status line.
    async fn raw(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(socket_path(self.dir.path())).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let reading = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer));
        reading.await.expect("the server answers or closes").unwrap();
        String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
    }
}

#[tokio::test]
async fn tokens_are_made_and_nodes_listed_renamed_and_removed() {
    let rig = Rig::start().await;
    rig.join(1, &["gpu"]).await;
    rig.join(2, &[]).await;
    rig.online.send_replace([NodeId(2)].into());
    let client = rig.client();
    let nodes = client.nodes().await.unwrap();
    assert_eq!(nodes.iter().map(|entry| entry.online).collect::<Vec<_>>(), [false, true]);
    assert_eq!(nodes[0].node.tags, ["gpu"]);
    client.rename_node(&nodes[0].node.name, "pi".parse().unwrap()).await.unwrap();
    client.remove_node(&nodes[1].node.name).await.unwrap();
    let names: Vec<_> =
        client.nodes().await.unwrap().into_iter().map(|entry| entry.node.name.to_string()).collect();
    assert_eq!(names, ["pi"]);
    let error = client.remove_node(&"n2".parse().unwrap()).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no node named n2");
    let error = client.create_token(&TokenRequest { ttl_s: 60, uses: 0, tags: vec![] }).await.unwrap_err();
    assert!(error.to_string().contains("at least one use"), "{error}");
}

#[test]
fn the_join_command_names_the_port_only_where_it_must() {
    let pin = KeyPin([0xab; 32]);
    let token = JoinToken::from_random([1; 5], [2; 16]);
    let rest = format!("--token {} --ca-cert-hash sha256:{}", *token.reveal(), "ab".repeat(32));
    for (coordinator, host) in [
        ("pi.example:7443", "pi.example"),
        ("192.0.2.1:443", "192.0.2.1:443"),
        ("[2001:db8::1]:7443", "[2001:db8::1]"),
    ] {
        assert_eq!(join_command(coordinator, &pin, &token), format!("mesh-agent join {host} {rest}"));
    }
}

#[tokio::test]
async fn requests_of_web_pages_and_garbage_are_refused() {
    let rig = Rig::start().await;
    let forbidden = "HTTP/1.1 403 Forbidden";
    for headers in [
        "Host: evil.com".to_owned(),
        format!("Host: {HOST}\r\nOrigin: http://evil.com"),
        format!("Host: {HOST}\r\nReferer: http://evil.com/"),
    ] {
        assert_eq!(rig.raw(&format!("GET /v1/nodes HTTP/1.1\r\n{headers}\r\n\r\n")).await, forbidden);
    }
    assert_eq!(
        rig.raw(&format!("GET http://evil.com/v1/nodes HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await,
        forbidden
    );
    assert!(rig.raw("GET /v1/nodes HTTP/1.0\r\n\r\n").await.ends_with("403 Forbidden"));
    assert!(!rig.raw("GET /v1/nodes\r\n\r\n").await.contains("200"), "HTTP/0.9");
    assert!(!rig.raw("\0\u{1}garbage\r\n\r\n").await.contains("200"));
    let ok = "HTTP/1.1 200 OK";
    assert_eq!(rig.raw(&format!("GET /v1/nodes HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await, ok);
    let missing = rig.raw(&format!("GET /v1/nodes/../../etc HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    assert_eq!(missing, "HTTP/1.1 404 Not Found");
    let name = rig.raw(&format!("DELETE /v1/nodes/%2e%2e HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    assert_eq!(name, "HTTP/1.1 400 Bad Request");
    let large = format!("POST /v1/tokens HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 9999999\r\n\r\n");
    let large = large + &" ".repeat(200 << 10);
    let mut stream = UnixStream::connect(socket_path(rig.dir.path())).await.unwrap();
    let _ = stream.write_all(large.as_bytes()).await;
    let mut status = [0; 12];
    if stream.read_exact(&mut status).await.is_ok() {
        assert_eq!(&status, b"HTTP/1.1 400");
    }
}

#[tokio::test]
async fn without_a_coordinator_the_client_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let error = Client::new(dir.path()).nodes().await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }));
    let text = error.to_string();
    let socket = socket_path(dir.path());
    assert!(text.starts_with(&format!("cannot reach the coordinator at {}: is", socket.display())), "{text}");
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_removed_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    drop(std::os::unix::net::UnixListener::bind(socket_path(dir.path())).unwrap());
    let rig = Rig::start().await;
    rig.client().nodes().await.unwrap();
    rig.cancel.cancel();
    rig.server.await.unwrap();
    assert!(!socket_path(rig.dir.path()).exists());
}

/// As root, calls from a thread that has become another user; elsewhere, the service pretends to be another's.
#[tokio::test]
async fn a_stranger_may_read_but_not_change() {
    let rig = Rig::start_as(Credentials { uid: SERVICE, gid: SERVICE }).await;
    rig.registry
        .create_token(TokenSpec { ttl: Duration::from_secs(60), uses: 1, tags: vec![] })
        .await
        .unwrap();
    fs::set_permissions(rig.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let client = rig.client();
    let answers = std::thread::spawn(move || {
        if rustix::process::geteuid().is_root() {
            let (gid, uid) = (Gid::from_raw(STRANGER), Uid::from_raw(STRANGER));
            set_thread_res_gid(gid, gid, gid).unwrap();
            set_thread_res_uid(uid, uid, uid).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let name = "n1".parse().unwrap();
            let token = TokenRequest { ttl_s: 60, uses: 1, tags: vec![] };
            client.nodes().await.unwrap();
            [
                client.create_token(&token).await.unwrap_err(),
                client.remove_node(&name).await.unwrap_err(),
                client.rename_node(&name, "pi".parse().unwrap()).await.unwrap_err(),
                client.backup().await.unwrap_err(),
            ]
        })
    });
    let answers = tokio::task::spawn_blocking(|| answers.join().unwrap()).await.unwrap();
    for error in answers {
        assert!(error.to_string().starts_with("only root"), "{error}");
    }
}
