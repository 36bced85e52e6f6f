//! Against an API server in the hands of the test.

use std::{
    convert::Infallible,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};

use super::*;

/// Longer than any test.
const LATER: i64 = 4_000_000_000;

/// An API server that answers all reviews in the same way; it is gone when this is dropped.
struct FakeServer {
    reviewer: Reviewer,
    asked: Arc<Mutex<Vec<Value>>>,
    task: JoinHandle<()>,
    _dir: TempDir,
}

impl FakeServer {
    async fn start(code: u16, answer: Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (seen, answer) = (Arc::clone(&seen), answer.clone());
                let service = service_fn(move |request| {
                    let (seen, answer) = (Arc::clone(&seen), answer.clone());
                    async move { Ok::<_, Infallible>(reply(request, &seen, code, &answer).await) }
                });
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("kubeconfig");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "c", "user": {"token": "coordinator"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        });
        std::fs::write(&kubeconfig, text.to_string()).unwrap();
        Self { reviewer: reviewer(kubeconfig), asked, task, _dir: dir }
    }

    async fn review(&self, token: &ServiceAccountToken) -> Result<(), ReviewError> {
        self.reviewer.review(token, &"country".parse().unwrap()).await
    }

    fn asked(&self) -> Vec<Value> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn reply(
    request: Request<Incoming>,
    asked: &Mutex<Vec<Value>>,
    code: u16,
    answer: &Value,
) -> Response<Full<Bytes>> {
    assert_eq!(request.uri().path(), "/apis/authentication.k8s.io/v1/tokenreviews");
    assert_eq!(request.headers()["authorization"], "Bearer coordinator");
    let body = request.into_body().collect().await.unwrap().to_bytes();
    asked.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
    Response::builder().status(code).body(Full::new(Bytes::from(answer.to_string()))).unwrap()
}

fn reviewer(kubeconfig: PathBuf) -> Reviewer {
    Reviewer::new(KubernetesOptions {
        kubeconfig,
        audience: DEFAULT_AUDIENCE.to_owned(),
        service_account: DEFAULT_SERVICE_ACCOUNT.parse().unwrap(),
    })
}

fn token(audience: &str, expires: i64) -> ServiceAccountToken {
    let claims = json!({"aud": [audience], "exp": expires}).to_string();
    format!("e30.{}.c2VjcmV0", URL_SAFE_NO_PAD.encode(claims)).parse().unwrap()
}

fn good() -> ServiceAccountToken {
    token(DEFAULT_AUDIENCE, LATER)
}

/// What the API server says of the token of an agent's pod on `country.lan`.
fn vouched() -> Value {
    json!({"kind": "TokenReview", "status": {
        "authenticated": true,
        "audiences": [DEFAULT_AUDIENCE],
        "user": {
            "username": "system:serviceaccount:mesh-system:mesh-agent",
            "groups": ["system:serviceaccounts"],
            "extra": {
                "authentication.kubernetes.io/node-name": ["country.lan"],
                "authentication.kubernetes.io/pod-name": ["mesh-agent-x"],
            },
        },
    }})
}

/// What becomes of a token of which the API server says this.
async fn reviewed(change: impl FnOnce(&mut Value)) -> Result<(), ReviewError> {
    let mut answer = vouched();
    change(&mut answer["status"]);
    FakeServer::start(201, answer).await.review(&good()).await
}

#[tokio::test]
async fn the_token_of_an_agent_s_pod_admits_the_node_that_it_runs_on() {
    let server = FakeServer::start(201, vouched()).await;
    server.review(&good()).await.unwrap();
    let [asked] = &server.asked()[..] else { panic!("it is asked once") };
    assert_eq!(asked["spec"], json!({"token": good().reveal(), "audiences": [DEFAULT_AUDIENCE]}));
    assert_eq!(
        (&asked["apiVersion"], &asked["kind"]),
        (&json!("authentication.k8s.io/v1"), &json!("TokenReview"))
    );
    let other = server.reviewer.review(&good(), &"office".parse().unwrap()).await.unwrap_err();
    assert_eq!(other.to_string(), "the token is of a pod on country.lan, which may not join as office");
    assert_eq!(other.refusal().code, RefusalCode::ServiceAccount);
}

#[tokio::test]
async fn what_the_api_server_does_not_vouch_for_is_refused_with_the_reason() {
    let unknown = reviewed(|status| *status = json!({"error": "invalid bearer token"})).await;
    assert!(matches!(unknown, Err(ReviewError::Unknown)), "{unknown:?}");
    // A server that does not look at audiences names none.
    let audience = reviewed(|status| status["audiences"] = json!([])).await.unwrap_err().to_string();
    assert!(audience.contains("and not for mesh-coordinator"), "{audience}");
    let account =
        reviewed(|status| status["user"]["username"] = json!("system:serviceaccount:default:mesh-agent"));
    assert_eq!(
        account.await.unwrap_err().to_string(),
        "the token is of system:serviceaccount:default:mesh-agent, and not of the ServiceAccount mesh-system/mesh-agent"
    );
    let unbound = reviewed(|status| status["user"]["extra"] = json!({})).await;
    assert!(matches!(unbound, Err(ReviewError::Unbound)), "{unbound:?}");
}

#[tokio::test]
async fn nobody_is_asked_for_what_the_token_says_itself() {
    let server = FakeServer::start(201, vouched()).await;
    let error = server.review(&token("https://kubernetes.default.svc", LATER)).await.unwrap_err();
    assert!(
        error.to_string().starts_with("the token is for https://kubernetes.default.svc, and not"),
        "{error}"
    );
    let expired = server.review(&token(DEFAULT_AUDIENCE, 1)).await;
    assert!(matches!(expired, Err(ReviewError::Expired)), "{expired:?}");
    assert!(server.asked().is_empty());
    // Who claims nothing is asked about.
    server.review(&"a.b.c".parse().unwrap()).await.unwrap();
}

#[tokio::test]
async fn an_api_server_that_cannot_be_asked_is_a_reason_to_come_again() {
    let forbidden = FakeServer::start(403, json!({"message": "no"})).await;
    let error = forbidden.review(&good()).await.unwrap_err();
    let ReviewError::Api(why) = &error else { panic!("{error}") };
    assert_eq!(why.to_string(), "RBAC does not permit this coordinator to create TokenReviews: no");
    let refusal = error.refusal();
    assert_eq!((refusal.code, refusal.retry_after_ms), (RefusalCode::Busy, Some(RETRY_AFTER_MS)));
    assert!(!refusal.message.contains("RBAC"), "strangers are told no details: {}", refusal.message);

    let missing = reviewer("/nonexistent/kubeconfig".into());
    let error = missing.review(&good(), &"country".parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, ReviewError::Api(ApiError::Access(_))), "{error:?}");

    let full = Reviewer { places: Arc::new(Semaphore::new(0)), ..missing };
    let error = full.review(&good(), &"country".parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, ReviewError::Busy), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_does_not_answer_is_not_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = FakeServer::start(201, vouched()).await;
    let path = server.reviewer.options.kubeconfig.clone();
    let text = std::fs::read_to_string(&path).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["clusters"][0]["cluster"]["server"] = json!(format!("http://{}", listener.local_addr().unwrap()));
    std::fs::write(&path, config.to_string()).unwrap();
    let error = server.review(&good()).await.unwrap_err();
    assert!(matches!(error, ReviewError::Late), "{error:?}");
}
