//! The cluster's certificate authority, and who it vouches for; made by `openssl`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::json;

/// Nothing comes from the machine's own configuration, which would make each certificate one of an authority.
const CONFIGURATION: &str = "[req]\ndistinguished_name = dn\nprompt = no\n[dn]\n";
/// In the directory of a cluster.
const DIRECTORY: &str = "pki";
/// Longer than any run.
const DAYS: &str = "2";

/// A directory with the authority's key and all that it has signed.
#[derive(Debug, Clone)]
pub(super) struct Pki {
    directory: PathBuf,
}

/// A certificate and its key.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// Who a certificate is for.
pub(super) struct Subject<'a> {
    /// The user, to the API server.
    pub(super) name: &'a str,
    /// Its group, if it matters.
    pub(super) group: Option<&'a str>,
    /// The names and addresses that it serves at, as `DNS:x` and `IP:y`.
    pub(super) serves: &'a [String],
}

/// Who signs a certificate.
enum Issuer {
    Itself,
    Authority,
}

/// Where the kubeconfig of a user will be, by the directory of its cluster and what its files are called.
pub(super) fn kubeconfig_of(cluster: &Path, file: &str) -> PathBuf {
    cluster.join(DIRECTORY).join(format!("{file}.kubeconfig"))
}

impl Pki {
    /// Makes an authority, and the key by which service accounts are vouched for, in the directory of a cluster.
    pub(super) fn make(cluster: &Path) -> anyhow::Result<Self> {
        let pki = Self { directory: cluster.join(DIRECTORY) };
        std::fs::create_dir_all(&pki.directory)?;
        std::fs::write(pki.file("openssl.cnf"), CONFIGURATION)?;
        let own = Identity { certificate: pki.authority(), key: pki.file("ca.key") };
        pki.request(
            &own,
            "/CN=lab",
            &["basicConstraints=critical,CA:TRUE", "keyUsage=keyCertSign"],
            Issuer::Itself,
        )?;
        run(Command::new("openssl").args(["genrsa", "-out"]).arg(pki.accounts_key()).arg("2048"))?;
        run(Command::new("openssl")
            .args(["rsa", "-pubout", "-in"])
            .arg(pki.accounts_key())
            .arg("-out")
            .arg(pki.accounts_public()))?;
        Ok(pki)
    }

    /// The authority's certificate.
    pub(super) fn authority(&self) -> PathBuf {
        self.file("ca.crt")
    }

    /// The key that signs the tokens of service accounts.
    pub(super) fn accounts_key(&self) -> PathBuf {
        self.file("accounts.key")
    }

    /// The key that checks them.
    pub(super) fn accounts_public(&self) -> PathBuf {
        self.file("accounts.pub")
    }

    /// Where the certificate and the key of these files are.
    pub(super) fn identity(&self, file: &str) -> Identity {
        Identity { certificate: self.file(&format!("{file}.crt")), key: self.file(&format!("{file}.key")) }
    }

    /// Signs a certificate; `file` is what its files are called.
    pub(super) fn sign(&self, file: &str, subject: &Subject<'_>) -> anyhow::Result<Identity> {
        let identity = self.identity(file);
        let group = subject.group.map_or_else(String::new, |group| format!("/O={group}"));
        let names = format!("subjectAltName={}", subject.serves.join(","));
        let mut extensions = vec!["extendedKeyUsage=clientAuth,serverAuth"];
        if !subject.serves.is_empty() {
            extensions.push(&names);
        }
        self.request(&identity, &format!("{group}/CN={}", subject.name), &extensions, Issuer::Authority)?;
        Ok(identity)
    }

    /// Signs a certificate for a user of the API server, and writes the kubeconfig by which the server is reached.
    pub(super) fn kubeconfig(
        &self,
        file: &str,
        server: &str,
        subject: &Subject<'_>,
    ) -> anyhow::Result<PathBuf> {
        let Identity { certificate, key } = self.sign(file, subject)?;
        let user = json!({"client-certificate": certificate, "client-key": key});
        self.write_kubeconfig(file, server, &self.authority(), &user)
    }

    /// Writes a kubeconfig by which this server, vouched for by this authority, is asked as this user.
    pub(super) fn write_kubeconfig(
        &self,
        file: &str,
        server: &str,
        authority: &Path,
        user: &serde_json::Value,
    ) -> anyhow::Result<PathBuf> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": {"server": server, "certificate-authority": authority}}],
            "users": [{"name": file, "user": user}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": file}}],
            "current-context": "lab",
        });
        let path = self.file(&format!("{file}.kubeconfig"));
        // Whoever waits for it finds all of it.
        let part = path.with_extension("part");
        std::fs::write(&part, config.to_string())?;
        std::fs::rename(part, &path)?;
        Ok(path)
    }

    /// A key in the form of RFC 5915, as Go's programs write it.
    pub(super) fn ec_key(&self, key: &Path) -> anyhow::Result<Vec<u8>> {
        output(Command::new("openssl").args(["ec", "-in"]).arg(key))
    }

    /// Another cluster's authority.
    pub(super) fn other_authority(&self) -> anyhow::Result<PathBuf> {
        let other = self.identity("other");
        self.request(&other, "/CN=other", &["basicConstraints=critical,CA:TRUE"], Issuer::Itself)?;
        Ok(other.certificate)
    }

    /// Signs as a service account's token what is to be one, in the form of RFC 7515: `HEADER.CLAIMS`.
    pub(super) fn sign_token(&self, text: &str) -> anyhow::Result<Vec<u8>> {
        let path = self.file("token");
        std::fs::write(&path, text)?;
        let mut command = Command::new("openssl");
        command.args(["dgst", "-sha256", "-sign"]).arg(self.accounts_key()).arg(path);
        output(&mut command)
    }

    fn request(
        &self,
        identity: &Identity,
        subject: &str,
        extensions: &[&str],
        issuer: Issuer,
    ) -> anyhow::Result<()> {
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
        command.args(["-days", DAYS, "-subj", subject, "-config"]).arg(self.file("openssl.cnf"));
        command.arg("-out").arg(&identity.certificate).arg("-keyout").arg(&identity.key);
        match issuer {
            Issuer::Itself => {}
            Issuer::Authority => {
                command.arg("-CA").arg(self.authority()).arg("-CAkey").arg(self.file("ca.key"));
            }
        }
        for extension in extensions {
            command.args(["-addext", extension]);
        }
        run(&mut command)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    output(command).map(drop)
}

fn output(command: &mut Command) -> anyhow::Result<Vec<u8>> {
    let output = command.output().context("openssl cannot be run")?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}
