//! Where the API server is, and whose credentials it is asked with.
//!
//! kubelet's client certificate and a pod's token are replaced every few hours or days by whoever issued them, so the files
//! are looked at before every request and read again when one of them is another file than before.

use std::{
    env, fs, io,
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kube::config::{AuthInfo, Config, KubeConfigOptions, Kubeconfig, KubeconfigError};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use secrecy::ExposeSecret as _;
use zeroize::Zeroizing;

use super::token::claims;

/// What kubelet asks with: kubeadm's, and k3s', which is the same on its servers.
const KUBELETS: [&str; 2] = ["/etc/kubernetes/kubelet.conf", "/var/lib/rancher/k3s/agent/kubelet.kubeconfig"];
/// What a pod is given.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Which says that this is a pod.
const SERVICE_HOST: &str = "KUBERNETES_SERVICE_HOST";

/// Where credentials come from, and what was read there last.
#[derive(Debug)]
pub struct Access {
    /// `None` to look for them.
    kubeconfig: Option<PathBuf>,
    loaded: Option<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    stamps: Vec<(PathBuf, Option<Stamp>)>,
    target: Arc<Target>,
}

/// Tells a file from the one that was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

/// An API server, and what is shown to it.
#[derive(Debug)]
pub struct Target {
    /// Its name or address.
    pub(crate) host: String,
    /// Its port.
    pub(crate) port: u16,
    /// How it is known; `None` on this host's loopback without TLS, as with `kubectl proxy`.
    pub(crate) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// What is shown to it beside a certificate.
    pub(crate) token: Option<Token>,
    /// The file that says so.
    pub(crate) source: PathBuf,
}

/// A bearer token; `Debug` does not show it.
pub(crate) struct Token {
    /// The value of the header.
    pub(crate) header: Zeroizing<String>,
    /// When it expires, if it says so, in seconds since 1970.
    pub(crate) expires: Option<i64>,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// Why the API server cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The kubeconfig that was named is not there.
    #[error("there is no kubeconfig: {} is not there", .0.display())]
    Missing(PathBuf),
    /// No kubeconfig was named, and there is none of a kubelet's.
    #[error("there is no kubeconfig: neither {} nor {} is there; name one with --kubernetes-kubeconfig", KUBELETS[0], KUBELETS[1])]
    NoneFound,
    /// A file cannot be read.
    #[error("{} cannot be read: {why}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        why: io::Error,
    },
    /// What is in a file is not what belongs there.
    #[error("{} cannot be used: {why}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why: a clause for people.
        why: String,
    },
}

impl Access {
    /// Takes the kubeconfig that was named, if one was.
    #[must_use]
    pub fn new(kubeconfig: Option<PathBuf>) -> Self {
        Self { kubeconfig, loaded: None }
    }

    /// Returns whom to ask and how, from the files as they are now.
    ///
    /// # Errors
    /// When they are missing, or make no sense.
    pub(crate) async fn target(&mut self) -> Result<Arc<Target>, AccessError> {
        if let Some(loaded) = &self.loaded
            && loaded.stamps.iter().all(|(path, stamp)| Stamp::of(path) == *stamp)
        {
            return Ok(Arc::clone(&loaded.target));
        }
        self.loaded = None;
        let (config, source) = self.read().await?;
        let mut files = vec![source.clone()];
        let named = &config.auth_info;
        let paths = [&named.client_certificate, &named.client_key, &named.token_file];
        files.extend(paths.into_iter().flatten().map(PathBuf::from));
        files.extend(config.root_cert_file.clone());
        // Before what is in them is read: what changes meanwhile is read again.
        let stamps = files.into_iter().map(|path| (path.clone(), Stamp::of(&path))).collect();
        let target = Arc::new(target(&config, source)?);
        self.loaded = Some(Loaded { stamps, target: Arc::clone(&target) });
        Ok(target)
    }

    async fn read(&self) -> Result<(Config, PathBuf), AccessError> {
        if self.kubeconfig.is_none() && is_pod() {
            let source = Path::new(SERVICE_ACCOUNT).join("token");
            let config = Config::incluster_env();
            return match config {
                Ok(config) => Ok((config, source)),
                Err(error) => Err(AccessError::Unusable { path: source, why: error.to_string() }),
            };
        }
        let found = || KUBELETS.iter().map(PathBuf::from).find(|path| path.exists());
        let path = self.kubeconfig.clone().or_else(found).ok_or(AccessError::NoneFound)?;
        let unusable = |error: KubeconfigError| match error {
            KubeconfigError::ReadConfig(why, path) if why.kind() == io::ErrorKind::NotFound => {
                AccessError::Missing(path)
            }
            KubeconfigError::ReadConfig(why, path) => AccessError::Read { path, why },
            other => AccessError::Unusable { path: path.clone(), why: other.to_string() },
        };
        let kubeconfig = Kubeconfig::read_from(&path).map_err(unusable)?;
        let options = KubeConfigOptions::default();
        let own_proxy = kubeconfig
            .clusters
            .iter()
            .filter_map(|named| named.cluster.as_ref())
            .any(|cluster| cluster.proxy_url.is_some());
        if own_proxy {
            let why = "a proxy to the API server is not supported".to_owned();
            return Err(AccessError::Unusable { path, why });
        }
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(unusable)?;
        Ok((config, path))
    }
}

/// Returns whether this process runs in a pod.
#[must_use]
pub fn is_pod() -> bool {
    env::var_os(SERVICE_HOST).is_some()
}

impl Target {
    /// Returns where it is, for people.
    #[must_use]
    pub fn address(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

fn target(config: &Config, source: PathBuf) -> Result<Target, AccessError> {
    let unusable = |why: String| AccessError::Unusable { path: source.clone(), why };
    let url = &config.cluster_url;
    let host = url.host().ok_or_else(|| unusable("its server has no host".to_owned()))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let is_plain = url.scheme_str() == Some("http");
    let port = url.port_u16().unwrap_or(if is_plain { 80 } else { 443 });
    if !matches!(url.path(), "" | "/") {
        return Err(unusable("its server has a path, which is not supported".to_owned()));
    }
    let token = token(&config.auth_info)?;
    if is_plain {
        let is_loopback = host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if !is_loopback {
            return Err(unusable("its server is http on another host: https is needed".to_owned()));
        }
        return Ok(Target { host, port, tls: None, token, source });
    }
    if config.accept_invalid_certs {
        let why = "insecure-skip-tls-verify is not supported: name the cluster's certificate authority";
        return Err(unusable(why.to_owned()));
    }
    let name = config.tls_server_name.clone().unwrap_or_else(|| host.clone());
    let name = ServerName::try_from(name).map_err(|error| unusable(format!("its server: {error}")))?;
    let tls = tls(config, &source)?;
    Ok(Target { host, port, tls: Some((Arc::new(tls), name)), token, source })
}

fn tls(config: &Config, source: &Path) -> Result<ClientConfig, AccessError> {
    let unusable = |why: String| AccessError::Unusable { path: source.to_owned(), why };
    let mut roots = RootCertStore::empty();
    let authorities = config.root_cert.iter().flatten().map(|der| CertificateDer::from(der.clone()));
    let (added, _) = roots.add_parsable_certificates(authorities);
    if added == 0 {
        return Err(unusable("it has no certificate authority".to_owned()));
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(error.to_string()))?
        .with_root_certificates(roots);
    match identity(&config.auth_info, source)? {
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| unusable(format!("its client certificate: {error}"))),
        None => Ok(builder.with_no_client_auth()),
    }
}

type ClientIdentity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Reads the client certificate and its key, if the user has them.
fn identity(user: &AuthInfo, source: &Path) -> Result<Option<ClientIdentity>, AccessError> {
    let certificate =
        data(user.client_certificate_data.as_deref(), user.client_certificate.as_deref(), source)?;
    let key_data = user.client_key_data.as_ref().map(|data| data.expose_secret());
    let key = data(key_data, user.client_key.as_deref(), source)?;
    let (Some((certificate, from)), Some((key, key_from))) = (certificate, key) else {
        let has_token = user.token.is_some() || user.token_file.is_some();
        let is_plugin = user.exec.is_some() || user.auth_provider.is_some();
        return match (has_token, is_plugin) {
            (true, _) => Ok(None),
            (false, true) => Err(AccessError::Unusable {
                path: source.to_owned(),
                why:
                    "its user needs a plugin, which is not supported: it has to have a certificate or a token"
                        .to_owned(),
            }),
            (false, false) => Err(AccessError::Unusable {
                path: source.to_owned(),
                why: "its user has neither a certificate with a key nor a token".to_owned(),
            }),
        };
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&certificate).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty());
    let chain = chain
        .ok_or_else(|| AccessError::Unusable { path: from, why: "no certificate is in it".to_owned() })?;
    let key = PrivateKeyDer::from_pem_slice(&key)
        .map_err(|_| AccessError::Unusable { path: key_from, why: "no private key is in it".to_owned() })?;
    Ok(Some((chain, key)))
}

type Content = (Zeroizing<Vec<u8>>, PathBuf);

/// Returns what stands in the kubeconfig itself, or else in the file that it names, and which file that is.
fn data(inline: Option<&str>, path: Option<&str>, source: &Path) -> Result<Option<Content>, AccessError> {
    if let Some(text) = inline {
        let decoded = STANDARD.decode(text.trim()).map_err(|_| AccessError::Unusable {
            path: source.to_owned(),
            why: "what is in it is not base64".to_owned(),
        })?;
        return Ok(Some((Zeroizing::new(decoded), source.to_owned())));
    }
    let Some(path) = path else { return Ok(None) };
    let content = read(Path::new(path))?;
    Ok(Some((content, path.into())))
}

fn token(user: &AuthInfo) -> Result<Option<Token>, AccessError> {
    let text = match (&user.token, &user.token_file) {
        (Some(token), _) => Zeroizing::new(token.expose_secret().to_owned()),
        (None, Some(path)) => {
            let content = read(Path::new(path))?;
            let text = std::str::from_utf8(&content).map_err(|_| AccessError::Unusable {
                path: path.into(),
                why: "no token is in it".to_owned(),
            })?;
            Zeroizing::new(text.trim().to_owned())
        }
        (None, None) => return Ok(None),
    };
    let expires = claims(&text).and_then(|claims| claims.expires);
    Ok(Some(Token { header: Zeroizing::new(format!("Bearer {}", text.as_str())), expires }))
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, AccessError> {
    let read = fs::read(path).map_err(|why| AccessError::Read { path: path.to_owned(), why })?;
    Ok(Zeroizing::new(read))
}
