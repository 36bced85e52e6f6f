//! Against an API server in the hands of the test.

mod fake;

use std::{sync::Arc, time::Duration};

use base64::Engine as _;
use hyper::Method;
use mesh_kubeapi::Access;
use mesh_proto::kubernetes::{ApiState, NetworkPolicies};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    sync::{Notify, watch as channel},
    time::timeout,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use super::{
    api::Api,
    tell::{Answers, Network, Notice, Severity, Teller, Wanted},
    watch::{Presence, Seen, Watcher},
};
use fake::{FakeServer, PATIENCE, kubeconfig, node};

/// A watcher, and all that it needs.
struct Watching {
    server: FakeServer,
    dir: TempDir,
    seen: channel::Receiver<Seen>,
    sign: Arc<Notify>,
    _guard: DropGuard,
}

impl Watching {
    async fn start() -> Self {
        let server = FakeServer::start(None).await;
        let dir = tempfile::tempdir().unwrap();
        let path = kubeconfig(dir.path(), &format!("http://127.0.0.1:{}", server.port), "");
        let (sender, seen) = channel::channel(Seen::default());
        let sign = Arc::new(Notify::new());
        let cancel = CancellationToken::new();
        let api = Api::new(Access::new(Some(path)), "pi".to_owned());
        tokio::spawn(Watcher::new(api, sender, Arc::clone(&sign)).run(cancel.clone()));
        Self { server, dir, seen, sign, _guard: cancel.drop_guard() }
    }

    async fn until(&mut self, is_it: impl FnMut(&Seen) -> bool) -> Seen {
        timeout(PATIENCE, self.seen.wait_for(is_it)).await.expect("it is seen").unwrap().clone()
    }

    async fn until_range(&mut self, range: &str) {
        let range = range.parse().unwrap();
        self.until(|seen| matches!(&seen.node, Presence::There(node) if node.pod_ranges().0 == [range]))
            .await;
    }
}

fn is_there(seen: &Seen) -> bool {
    matches!(seen.node, Presence::There(_))
}

#[tokio::test]
async fn a_node_comes_changes_goes_and_comes_again() {
    let mut watching = Watching::start().await;
    watching.until(|seen| matches!(seen.node, Presence::Absent) && seen.api.state == ApiState::Answers).await;
    watching.server.set_node(Some(node("a", &[])));
    watching.until(is_there).await;
    watching.server.set_node(Some(node("a", &["10.244.1.0/24"])));
    watching.until_range("10.244.1.0/24").await;
    watching.server.set_node(None);
    watching.until(|seen| matches!(seen.node, Presence::Deleted)).await;
    watching.server.set_node(Some(node("b", &["10.244.7.0/24"])));
    watching.until_range("10.244.7.0/24").await;
    assert_eq!(watching.server.lists_and_watches(), (1, 1), "one watch is enough for all of it");
}

#[tokio::test]
async fn a_watch_goes_on_from_its_version_and_begins_anew_when_that_is_too_old() {
    let mut watching = Watching::start().await;
    watching.server.set_node(Some(node("a", &["10.244.1.0/24"])));
    watching.until(is_there).await;
    let bookmark = json!({"type": "BOOKMARK", "object": {"kind": "Node", "apiVersion": "v1",
        "metadata": {"resourceVersion": "77", "creationTimestamp": null}, "spec": {}, "status": {}}});
    watching.server.tell(bookmark);
    // The bookmark is taken before the watch ends.
    watching.server.set_node(Some(node("a", &["10.244.2.0/24"])));
    watching.until_range("10.244.2.0/24").await;
    let (lists, watches) = watching.server.lists_and_watches();
    let gone = json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}});
    watching.server.tell(gone);
    watching.server.asked(|asked| asked.query.contains("watch=true")).await;
    let again = async {
        while watching.server.lists_and_watches() != (lists + 1, watches + 1) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, again).await.expect("the Node is listed and watched again");
    watching.server.set_node(Some(node("a", &["10.244.3.0/24"])));
    watching.until_range("10.244.3.0/24").await;
    assert_eq!(watching.seen.borrow().api.state, ApiState::Answers, "that is no failure");
}

#[tokio::test]
async fn what_was_seen_stays_while_the_server_is_away() {
    let mut watching = Watching::start().await;
    watching.server.set_node(Some(node("a", &["10.244.1.0/24"])));
    watching.until(|seen| is_there(seen) && seen.api.state == ApiState::Answers).await;
    watching.server.stop();
    let seen = watching.until(|seen| seen.api.state == ApiState::Silent).await;
    let error = seen.api.error.unwrap();
    assert!(error.contains("cannot be reached"), "{error}");
    assert!(seen.api.last_answer.is_some() && matches!(seen.node, Presence::There(_)));
    watching.server.start_again().await;
    watching.server.set_node(Some(node("a", &["10.244.2.0/24"])));
    watching.sign.notify_one();
    watching.until_range("10.244.2.0/24").await;
    watching.until(|seen| seen.api.state == ApiState::Answers && seen.api.error.is_none()).await;
}

#[tokio::test]
async fn a_token_that_is_replaced_is_used_and_one_that_is_not_is_told() {
    let mut watching = Watching::start().await;
    watching.server.state().token = "better".to_owned();
    watching.server.state().refusals = vec![(Method::GET, "/nothing", 500)];
    // The first watch may have been made before.
    watching.server.stop();
    watching.server.start_again().await;
    let seen = watching.until(|seen| seen.api.state == ApiState::Refuses).await;
    let error = seen.api.error.unwrap();
    assert!(
        error.starts_with("the API server does not take this agent's credentials: the token of"),
        "{error}"
    );
    std::fs::write(watching.dir.path().join("token"), "better").unwrap();
    watching.sign.notify_one();
    watching.until(|seen| seen.api.state == ApiState::Answers).await;
}

#[tokio::test]
async fn what_rbac_refuses_is_told() {
    let mut watching = Watching::start().await;
    watching.until(|seen| seen.api.state == ApiState::Answers).await;
    watching.server.state().refusals = vec![(Method::GET, "/api/v1/nodes", 403)];
    watching.server.stop();
    watching.server.start_again().await;
    let seen = watching.until(|seen| seen.api.state == ApiState::Refuses).await;
    let error = seen.api.error.unwrap();
    assert!(error.starts_with("RBAC does not permit this agent to watch the Node pi"), "{error}");
    assert!(seen.api.knows_agent);
}

#[tokio::test]
async fn a_server_of_another_authority_is_not_asked() {
    let issue = || rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let (own, other) = (issue(), issue());
    let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let tls =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .unwrap();
    let server = FakeServer::start(Some(Arc::new(tls).into())).await;
    server.set_node(Some(node("a", &["10.244.1.0/24"])));
    let ask = async |host: &str, authority: &str| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.crt"), authority).unwrap();
        let url = format!("https://{host}:{}", server.port);
        let path = kubeconfig(dir.path(), &url, "    certificate-authority: ca.crt\n");
        let mut api = Api::new(Access::new(Some(path)), "pi".to_owned());
        api.node().await.map(|(node, _)| node.is_some()).map_err(|error| error.to_string())
    };
    assert_eq!(ask("127.0.0.1", &pem(own.cert.der())).await, Ok(true));
    let error = ask("127.0.0.1", &pem(other.cert.der())).await.unwrap_err();
    assert!(error.contains("shows a certificate of another CA than the one in"), "{error}");
    let error = ask("localhost", &pem(own.cert.der())).await.unwrap_err();
    assert!(error.contains("its certificate is not for localhost"), "{error}");
    assert_eq!(server.state().asked.len(), 1, "no token was shown to anybody else");
}

fn pem(der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

/// A teller, and all that it needs.
struct Telling {
    server: FakeServer,
    wanted: channel::Sender<Wanted>,
    answers: channel::Receiver<Answers>,
    seen: channel::Sender<Seen>,
    _dir: TempDir,
    _guard: DropGuard,
}

impl Telling {
    async fn start(refusals: Vec<(Method, &'static str, u16)>) -> Self {
        let server = FakeServer::start(None).await;
        server.state().refusals = refusals;
        server.state().policies = true;
        let dir = tempfile::tempdir().unwrap();
        let path = kubeconfig(dir.path(), &format!("http://127.0.0.1:{}", server.port), "");
        let node = serde_json::from_value(node("a", &["10.244.1.0/24"])).unwrap();
        let mut seen = Seen { node: Presence::There(Arc::new(node)), ..Seen::default() };
        (seen.api.state, seen.api.knows_agent) = (ApiState::Answers, true);
        let (seen, seen_by_teller) = channel::channel(seen);
        let (wanted, wanted_by_teller) = channel::channel(Wanted::default());
        let (sender, answers) = channel::channel(Answers::default());
        let (cancel, tracker) = (CancellationToken::new(), TaskTracker::new());
        let api = Api::new(Access::new(Some(path)), "pi".to_owned());
        let teller = Teller::new(api, "pi".to_owned(), (seen_by_teller, wanted_by_teller), sender);
        tracker.spawn(teller.run(cancel.clone()));
        Self { server, wanted, answers, seen, _dir: dir, _guard: cancel.drop_guard() }
    }

    fn want(&self, message: &str, notices: &[&str]) {
        let notice = |message: &&str| Notice {
            reason: "MeshPodCIDRRefused",
            message: (*message).to_owned(),
            severity: Severity::Warning,
        };
        let condition = Some(Network::Available(message.to_owned()));
        self.wanted.send_replace(Wanted { condition, notices: notices.iter().map(notice).collect() });
    }

    fn count(&self, method: &Method) -> usize {
        self.server.state().asked.iter().filter(|asked| asked.method == *method).count()
    }
}

#[tokio::test]
async fn the_cluster_is_told_once_and_asked_what_changes_seldom() {
    let mut telling = Telling::start(vec![]).await;
    telling.want("the mesh carries it", &["it is refused"]);
    let patched = telling.server.asked(|asked| asked.method == Method::PATCH).await;
    assert_eq!(patched.path, "/api/v1/nodes/pi/status");
    assert_eq!(patched.content_type.as_deref(), Some("application/strategic-merge-patch+json"));
    let conditions = &patched.body["status"]["conditions"];
    assert_eq!(conditions[0]["type"], "NetworkUnavailable");
    assert_eq!((&conditions[0]["status"], &conditions[0]["reason"]), (&json!("False"), &json!("MeshReady")));
    let event = telling.server.asked(|asked| asked.method == Method::POST).await.body;
    assert_eq!(event["involvedObject"]["name"], "pi");
    assert_eq!((&event["type"], &event["message"]), (&json!("Warning"), &json!("it is refused")));
    let said = timeout(PATIENCE, telling.answers.wait_for(|answers| !answers.service_ranges.is_empty()));
    let said = said.await.unwrap().unwrap().clone();
    assert_eq!(said.policies, NetworkPolicies::NotEnforced);
    // The same again is no news; many things at once are few Events.
    telling.want("the mesh carries it", &["it is refused"]);
    let many: Vec<_> = (0..20).map(|number| format!("trouble {number}")).collect();
    telling.want("the mesh carries it", &many.iter().map(String::as_str).collect::<Vec<_>>());
    telling.server.asked(|asked| asked.body["message"] == "trouble 4").await;
    telling.want("the mesh carries it still", &[]);
    telling
        .server
        .asked(|asked| asked.body["status"]["conditions"][0]["message"] == "the mesh carries it still")
        .await;
    assert_eq!((telling.count(&Method::POST), telling.count(&Method::PATCH)), (6, 2));
}

#[tokio::test]
async fn what_rbac_does_not_permit_to_tell_is_known() {
    let refusals = vec![(Method::PATCH, "/api/v1/nodes", 403), (Method::GET, "/apis/networking.k8s.io", 403)];
    let mut telling = Telling::start(refusals).await;
    telling.want("the mesh carries it", &[]);
    let refused = timeout(PATIENCE, telling.answers.wait_for(|answers| !answers.refused.is_empty()));
    let answers = refused.await.unwrap().unwrap().clone();
    let sentence = "RBAC does not permit this agent to set conditions of the Node pi: so says the server";
    assert_eq!(answers.refused, [sentence]);
    assert_eq!(answers.policies, NetworkPolicies::Unknown, "not to be told of policies is no trouble");
}

#[tokio::test]
async fn what_could_not_be_told_is_told_later() {
    let events = "/api/v1/namespaces/default/events";
    let telling = Telling::start(vec![(Method::POST, events, 500)]).await;
    // Of a Node that may not be read nobody knows more than the name.
    telling.seen.send_modify(|seen| (seen.node, seen.api.state) = (Presence::Unknown, ApiState::Refuses));
    telling.want("the mesh carries it", &["it is refused"]);
    telling.server.asked(|asked| asked.method == Method::POST).await;
    telling.server.state().refusals.clear();
    telling.server.state().asked.clear();
    telling.want("the mesh carries it still", &["it is refused"]);
    let event = telling.server.asked(|asked| asked.method == Method::POST).await.body;
    assert_eq!(
        (&event["involvedObject"]["name"], &event["involvedObject"]["uid"]),
        (&json!("pi"), &json!(""))
    );
    assert_eq!(telling.count(&Method::PATCH), 0);
}
