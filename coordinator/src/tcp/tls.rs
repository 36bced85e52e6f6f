//! The two layers of TLS of a stream.
//!
//! The outer one is for whoever stands on the way and lets nothing else through: its certificate is made anew at every
//! start and proves nothing. The inner one is the session of the control protocol, with both sides' keys.

use std::sync::Arc;

use anyhow::Context as _;
use mesh_proto::stream;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::NoServerSessionStorage,
};
use tokio_rustls::TlsAcceptor;

/// What the outer certificate calls itself.
const CERTIFICATE_NAME: &str = "mesh-coordinator";

/// Both layers of TLS. Cheap to clone.
#[derive(Clone)]
pub struct StreamTls {
    pub(super) outer: TlsAcceptor,
    pub(super) inner: TlsAcceptor,
}

impl StreamTls {
    /// Makes both layers, the inner one with this Ed25519 key.
    ///
    /// # Errors
    /// When the key cannot be used, or no certificate can be made.
    pub fn new(pkcs8: &[u8]) -> anyhow::Result<Self> {
        let inner = mesh_rawkeys::server_config(pkcs8, stream::ALPN).context("cannot use the key for TLS")?;
        Ok(Self { outer: Arc::new(outer_config()?).into(), inner: Arc::new(inner).into() })
    }
}

fn outer_config() -> anyhow::Result<ServerConfig> {
    let names = vec![CERTIFICATE_NAME.to_owned()];
    let made = rcgen::generate_simple_self_signed(names).context("cannot make a certificate")?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
