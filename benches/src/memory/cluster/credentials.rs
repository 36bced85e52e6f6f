//! The server's certificate, and a kubeconfig as kubeadm writes it for a kubelet: an authority with an RSA key, and a client
//! certificate with its key in one file beside.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    PKCS_RSA_SHA256,
};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use serde_json::json;

/// Characters of a line of such a file.
const PEM_LINE: usize = 64;

/// The server's, and an agent's way to it.
pub(super) struct Credentials {
    pub(super) kubeconfig: PathBuf,
    pub(super) tls: ServerConfig,
}

impl Credentials {
    /// Makes all of them, for the server at this address and the kubelet of this node.
    pub(super) fn make(directory: &Path, server: SocketAddr, node: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "kubernetes");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate_for(&PKCS_RSA_SHA256)?)?;

        let mut params = CertificateParams::new([server.ip().to_string()])?;
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        let key = KeyPair::generate_for(&PKCS_RSA_SHA256)?;
        let certificate = params.signed_by(&key, &authority)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone())?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients.build().context("the clients' authority")?)
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )?;

        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &authority)?;
        let client = directory.join("kubelet-client-current.pem");
        std::fs::write(
            &client,
            pem("CERTIFICATE", certificate.der()) + &pem("PRIVATE KEY", &key.serialize_der()),
        )?;
        let authority_file = directory.join("ca.crt");
        std::fs::write(&authority_file, pem("CERTIFICATE", authority.der()))?;
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "default-cluster",
                "cluster": {"server": format!("https://{server}"), "certificate-authority": authority_file}}],
            "users": [{"name": "default-auth", "user": {"client-certificate": client, "client-key": client}}],
            "contexts": [{"name": "default-context",
                "context": {"cluster": "default-cluster", "user": "default-auth", "namespace": "default"}}],
            "current-context": "default-context",
        });
        let kubeconfig = directory.join("kubelet.conf");
        std::fs::write(&kubeconfig, config.to_string())?;
        Ok(Self { kubeconfig, tls })
    }
}

/// Writes something in the form of RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(PEM_LINE).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
