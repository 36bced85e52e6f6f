//! TokenReview: the parts of it that are sent and looked at (`authentication.k8s.io/v1`).

use std::collections::BTreeMap;

use kube::core::{params::PostParams, request::Request};
use mesh_kubeapi::{ApiError, Client};
use mesh_proto::token::ServiceAccountToken;
use serde::{Deserialize, Serialize};

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// Where the server names the Node that a token's pod runs on.
const NODE: &str = "authentication.kubernetes.io/node-name";

/// What the API server says of a token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Reviewed {
    /// Whether it is anybody's.
    pub(super) authenticated: bool,
    /// Those of the audiences that were asked for which it is good for.
    pub(super) audiences: Vec<String>,
    /// Whose it is.
    pub(super) user: String,
    /// The Node that its pod runs on; one, if it has one.
    pub(super) nodes: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Question<'a> {
    api_version: &'static str,
    kind: &'static str,
    spec: Spec<'a>,
}

#[derive(Serialize)]
struct Spec<'a> {
    token: &'a str,
    audiences: [&'a str; 1],
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    authenticated: bool,
    #[serde(default)]
    audiences: Vec<String>,
    #[serde(default)]
    user: User,
}

#[derive(Default, Deserialize)]
struct User {
    #[serde(default)]
    username: String,
    #[serde(default)]
    extra: BTreeMap<String, Vec<String>>,
}

/// Asks whose a token is, for one audience.
pub(super) async fn ask(
    client: &mut Client,
    token: &ServiceAccountToken,
    audience: &str,
) -> Result<Reviewed, ApiError> {
    let question = Question {
        api_version: "authentication.k8s.io/v1",
        kind: "TokenReview",
        spec: Spec { token: token.reveal(), audiences: [audience] },
    };
    let body = serde_json::to_vec(&question).map_err(|error| ApiError::Malformed(error.to_string()))?;
    let request = Request::new(REVIEWS).create(&PostParams::default(), body);
    let Answer { status } = client.ask(request, "create TokenReviews").await?;
    let Status { authenticated, audiences, mut user } = status;
    let nodes = user.extra.remove(NODE).unwrap_or_default();
    Ok(Reviewed { authenticated, audiences, user: user.username, nodes })
}
