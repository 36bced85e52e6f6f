//! What an agent of a worker asks the API server with, good and bad. It has kubelet's own file, which kubelet reads only when
//! it starts.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use super::pki::Subject;
use super::{Cluster, control_plane, worker};

/// Who issues the tokens of this cluster.
const ISSUER: &str = "https://kubernetes.default.svc";
/// How long ago a token has expired.
const AGO: Duration = Duration::from_secs(600);

/// What an agent is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credentials {
    /// What its kubelet has.
    Kubelet,
    /// What the kubelet of that Node has.
    KubeletOf(&'static str),
    /// A user to whom RBAC has to permit everything.
    User(&'static str),
    /// What its kubelet has, but the authority of another cluster.
    OtherAuthority,
    /// The token of a service account, which was not replaced in time.
    ExpiredToken,
}

impl Cluster {
    /// Has the agent of a worker ask the API server with these credentials, from its next request on.
    ///
    /// # Errors
    ///
    /// If they cannot be made.
    pub fn set_credentials(&self, name: &str, credentials: Credentials) -> anyhow::Result<PathBuf> {
        let (address, _) = self.plane()?;
        let server = control_plane::server_at(*address);
        let file = worker::kubelet(name);
        let identity = |of: &str| {
            let identity = self.pki.identity(of);
            json!({"client-certificate": identity.certificate, "client-key": identity.key})
        };
        let (authority, user) = match credentials {
            Credentials::Kubelet => (self.pki.authority(), identity(&file)),
            Credentials::KubeletOf(node) => (self.pki.authority(), identity(&worker::kubelet(node))),
            Credentials::User(user) => {
                self.pki.sign(user, &Subject { name: user, group: None, serves: &[] })?;
                (self.pki.authority(), identity(user))
            }
            Credentials::OtherAuthority => (self.pki.other_authority()?, identity(&file)),
            Credentials::ExpiredToken => (self.pki.authority(), json!({"token": self.expired_token()?})),
        };
        self.pki.write_kubeconfig(&file, &server, &authority, &user)
    }

    fn expired_token(&self) -> anyhow::Result<String> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let expired = now.checked_sub(AGO).context("a clock of this century")?.as_secs();
        let account =
            json!({"namespace": "mesh-system", "serviceaccount": {"name": "mesh-agent", "uid": "0"}});
        let claims = json!({
            "iss": ISSUER,
            "sub": "system:serviceaccount:mesh-system:mesh-agent",
            "aud": [ISSUER],
            "iat": expired - AGO.as_secs(),
            "nbf": expired - AGO.as_secs(),
            "exp": expired,
            "kubernetes.io": account,
        });
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(&json!({"alg": "RS256", "typ": "JWT"})), part(&claims));
        let signature = self.pki.sign_token(&text)?;
        Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}
