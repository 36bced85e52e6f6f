//! ServiceAccounts' tokens in place of join tokens: a pod of the cluster's DaemonSet joins as the node that it runs on.
//!
//! ```text
//! agent's pod                    coordinator                               API server
//!   | -- JoinServiceAccount ---> |  a token at all? for this audience?      |
//!   |    (token, name, key)      |  not expired, by its own words?          |
//!   |                            | -- TokenReview (token, audience) ------> |
//!   |                            | <-- authenticated, audience, user, node -|
//!   | <---- Joined | Refused --- |  the ServiceAccount? the node's name?    |
//! ```
//!
//! What the token says of itself decides nothing: it saves the API server questions whose answer is known, and makes the
//! sentence clearer. The API server alone says whose token it is. It is given to one pod and names the Node that this pod
//! runs on (`authentication.kubernetes.io/node-name`, Kubernetes 1.32 and later), so the token of one node's pod admits no
//! other node. The audience keeps tokens that pods have for something else from being used here, and tokens that came here
//! from being used at the API server.
//!
//! The coordinator asks with credentials that need no more than to create TokenReviews.

mod review;
#[cfg(test)]
mod tests;

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use mesh_kubeapi::{Access, ApiError, Caller, Client};
use mesh_proto::{
    control::{Refusal, RefusalCode},
    name::NodeName,
    token::ServiceAccountToken,
};
use time::OffsetDateTime;
use tokio::{sync::Semaphore, time::timeout};

use review::Reviewed;

/// How long the API server may take: an agent waits longer.
const REVIEW_DEADLINE: Duration = Duration::from_secs(6);
/// Tokens that are reviewed at the same time: the API server has other things to do.
const MAX_REVIEWS: usize = 8;
/// How long an agent waits before it asks again, in milliseconds.
const RETRY_AFTER_MS: u64 = 2_000;

/// The audience of tokens that are meant for a coordinator.
pub const DEFAULT_AUDIENCE: &str = "mesh-coordinator";
/// The ServiceAccount of the DaemonSet in `deploy/k8s`.
pub const DEFAULT_SERVICE_ACCOUNT: &str = "mesh-system/mesh-agent";

/// Whose tokens are taken, and who checks them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesOptions {
    /// How the API server is asked.
    pub kubeconfig: PathBuf,
    /// What tokens must be for.
    pub audience: String,
    /// Whose they must be.
    pub service_account: ServiceAccount,
}

/// A ServiceAccount, `NAMESPACE/NAME` in text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    namespace: String,
    name: String,
}

/// A text is no ServiceAccount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a ServiceAccount is NAMESPACE/NAME, such as mesh-system/mesh-agent")]
pub struct InvalidServiceAccount;

/// Reviews tokens.
#[derive(Debug)]
pub struct Reviewer {
    options: KubernetesOptions,
    places: Arc<Semaphore>,
}

/// Why a token admits nobody.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// It is for somebody else.
    #[error(
        "the token is for {}, and not for {wanted}: its volume needs `audience: {wanted}`",
        list(audiences)
    )]
    Audience {
        /// For whom it says that it is.
        audiences: Vec<String>,
        /// For whom it should be.
        wanted: String,
    },
    /// Its time is over.
    #[error("the token has expired: kubelet should have replaced it, or a clock is wrong")]
    Expired,
    /// The API server does not know it: it may be another cluster's, or of a pod that is gone.
    #[error(
        "the API server does not take the token: it is another cluster's, or its pod or ServiceAccount is gone"
    )]
    Unknown,
    /// It is not the agents'.
    #[error("the token is of {user}, and not of the ServiceAccount {wanted}")]
    Account {
        /// Whose it is.
        user: String,
        /// Whose it should be.
        wanted: ServiceAccount,
    },
    /// It is not bound to a node.
    #[error("the token names no node: it has to be a pod's own, of Kubernetes 1.32 or later")]
    Unbound,
    /// It is another node's.
    #[error("the token is of a pod on {node}, which may not join as {name}")]
    Node {
        /// Where the pod runs.
        node: String,
        /// What the node wants to be called.
        name: NodeName,
    },
    /// The API server cannot be asked. Why is not for strangers: the log says it.
    #[error(
        "the coordinator cannot have the token checked by the API server: the coordinator's log says why"
    )]
    Api(#[source] ApiError),
    /// The API server takes too long.
    #[error("the API server does not check tokens in time")]
    Late,
    /// Many tokens are being reviewed.
    #[error("many tokens are being checked: wait")]
    Busy,
}

impl Reviewer {
    /// Makes a reviewer. Nothing is asked or read yet: the API server may come later than the coordinator.
    #[must_use]
    pub fn new(options: KubernetesOptions) -> Self {
        Self { options, places: Arc::new(Semaphore::new(MAX_REVIEWS)) }
    }

    /// Checks that a token admits a node under this name.
    ///
    /// # Errors
    /// When it does not, or nobody can say.
    pub async fn review(&self, token: &ServiceAccountToken, name: &NodeName) -> Result<(), ReviewError> {
        let wanted = &self.options.audience;
        if let Some(claims) = mesh_kubeapi::claims(token.reveal()) {
            if !claims.audiences.contains(wanted) {
                let audiences = claims.audiences;
                return Err(ReviewError::Audience { audiences, wanted: wanted.clone() });
            }
            let now = OffsetDateTime::now_utc().unix_timestamp();
            if claims.expires.is_some_and(|expires| expires <= now) {
                return Err(ReviewError::Expired);
            }
        }
        let _place = self.places.try_acquire().map_err(|_| ReviewError::Busy)?;
        // Its own each time: credentials are read as they are now, and no review waits for another.
        let mut client = Client::new(Access::new(Some(self.options.kubeconfig.clone())), caller());
        let asked = review::ask(&mut client, token, wanted);
        let reviewed = match timeout(REVIEW_DEADLINE, asked).await {
            Ok(reviewed) => reviewed.map_err(|error| {
                tracing::warn!(%error, "tokens of ServiceAccounts cannot be checked");
                ReviewError::Api(error)
            })?,
            Err(_elapsed) => {
                tracing::warn!("tokens of ServiceAccounts cannot be checked: the API server takes too long");
                return Err(ReviewError::Late);
            }
        };
        self.judge(reviewed, name)
    }

    /// Decides by what the API server says.
    fn judge(&self, reviewed: Reviewed, name: &NodeName) -> Result<(), ReviewError> {
        let KubernetesOptions { kubeconfig: _, audience, service_account } = &self.options;
        let Reviewed { authenticated, audiences, user, nodes } = reviewed;
        if !authenticated {
            return Err(ReviewError::Unknown);
        }
        // A server that knows nothing of audiences names none.
        if !audiences.contains(audience) {
            return Err(ReviewError::Audience { audiences, wanted: audience.clone() });
        }
        if user != service_account.user() {
            return Err(ReviewError::Account { user, wanted: service_account.clone() });
        }
        let [node] = nodes.try_into().map_err(|_| ReviewError::Unbound)?;
        match mesh_name(&node).as_ref() == Some(name) {
            true => Ok(()),
            false => Err(ReviewError::Node { node, name: name.clone() }),
        }
    }
}

impl ReviewError {
    /// Returns what the agent is told.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let (code, retry_after_ms) = match self {
            Self::Api(_) | Self::Late | Self::Busy => (RefusalCode::Busy, Some(RETRY_AFTER_MS)),
            Self::Audience { .. }
            | Self::Expired
            | Self::Unknown
            | Self::Account { .. }
            | Self::Unbound
            | Self::Node { .. } => (RefusalCode::ServiceAccount, None),
        };
        Refusal { code, message: self.to_string(), retry_after_ms }
    }
}

impl ServiceAccount {
    /// What it is called as a user.
    fn user(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }
}

impl FromStr for ServiceAccount {
    type Err = InvalidServiceAccount;

    fn from_str(text: &str) -> Result<Self, InvalidServiceAccount> {
        let is_name = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        };
        match text.split_once('/') {
            Some((namespace, name)) if is_name(namespace) && is_name(name) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            Some(_) | None => Err(InvalidServiceAccount),
        }
    }
}

impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Who the coordinator is to the API server.
fn caller() -> Caller {
    Caller { name: "coordinator", user_agent: concat!("mesh-coordinator/", env!("CARGO_PKG_VERSION")) }
}

/// What a Node's machine is called in the mesh when nobody says: as an agent has it of its host name.
fn mesh_name(node: &str) -> Option<NodeName> {
    node.split('.').next().unwrap_or_default().to_ascii_lowercase().parse().ok()
}

fn list(audiences: &[String]) -> String {
    if audiences.is_empty() { "nobody in particular".to_owned() } else { audiences.join(", ") }
}
