//! Container images without a registry: OCI archives of a few binaries, as `ctr images import` takes them.
//!
//! ```text
//!   oci-layout, index.json -> blobs/sha256/<manifest> -> <configuration>, <layer: a tar of the files>
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// An image with busybox, and a server that tells who asks; it is the sandbox of every pod, too.
pub const TOOLS: &str = "lab.invalid/tools:1";
/// An image with CoreDNS.
pub const COREDNS: &str = "lab.invalid/coredns:1";
/// Debian has it in two packages, of which one is linked statically.
const BUSYBOX: &str = "/bin/busybox";
/// The server's answer: who asks, and who answers.
const WHO: &str =
    "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n%s %s\\n' \"$REMOTE_ADDR\" \"$(hostname)\"\n";

/// Writes both images, and returns their archives.
pub(super) fn make_all(directory: &Path, coredns: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let tools =
        Image { name: TOOLS, directory: directory.join("tools"), command: &["/bin/sleep", "2147483647"] };
    let root = tools.root();
    for path in ["bin", "tmp", "www/cgi-bin"] {
        std::fs::create_dir_all(root.join(path))?;
    }
    std::fs::copy(BUSYBOX, root.join("bin/busybox")).with_context(|| format!("{BUSYBOX} is not there"))?;
    for library in libraries(Path::new(BUSYBOX))? {
        let to = root.join(library.strip_prefix("/").unwrap_or(&library));
        std::fs::create_dir_all(to.parent().unwrap_or(&root))?;
        std::fs::copy(&library, to)?;
    }
    let applets = Command::new(BUSYBOX).arg("--list").output()?;
    for applet in String::from_utf8(applets.stdout)?.lines().filter(|applet| *applet != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    executable(&root.join("www/cgi-bin/who"), WHO)?;

    let dns = Image {
        name: COREDNS,
        directory: directory.join("coredns"),
        command: &["/coredns", "-conf", "/etc/coredns/Corefile"],
    };
    std::fs::create_dir_all(dns.root())?;
    std::fs::copy(coredns, dns.root().join("coredns"))?;
    Ok(vec![tools.write()?, dns.write()?])
}

/// One image: what is in its directory's `root`, and what it runs.
struct Image {
    name: &'static str,
    directory: PathBuf,
    command: &'static [&'static str],
}

impl Image {
    fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    fn write(&self) -> anyhow::Result<PathBuf> {
        let archive = self.directory.with_extension("tar");
        let tree = self.directory.join("oci");
        let blobs = tree.join("blobs/sha256");
        std::fs::create_dir_all(&blobs)?;
        let layer = self.directory.join("layer.tar");
        tar(&layer, &self.root())?;
        let layer = Blob::put(&blobs, &std::fs::read(&layer)?, "application/vnd.oci.image.layer.v1.tar")?;
        let configuration = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {"Cmd": self.command, "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
        });
        let configuration = Blob::put(
            &blobs,
            configuration.to_string().as_bytes(),
            "application/vnd.oci.image.config.v1+json",
        )?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": configuration.descriptor(),
            "layers": [layer.descriptor()],
        });
        let manifest =
            Blob::put(&blobs, manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json")?;
        let mut descriptor = manifest.descriptor();
        descriptor["annotations"] = json!({"io.containerd.image.name": self.name});
        std::fs::write(tree.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
        let index = json!({"schemaVersion": 2, "manifests": [descriptor]});
        std::fs::write(tree.join("index.json"), index.to_string())?;
        tar(&archive, &tree)?;
        std::fs::remove_dir_all(&self.directory)?;
        Ok(archive)
    }
}

/// Something that is found by what it holds.
struct Blob {
    kind: &'static str,
    digest: String,
    size: usize,
}

impl Blob {
    fn put(directory: &Path, bytes: &[u8], kind: &'static str) -> anyhow::Result<Self> {
        let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        std::fs::write(directory.join(&hash), bytes)?;
        Ok(Self { kind, digest: format!("sha256:{hash}"), size: bytes.len() })
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.kind, "digest": self.digest, "size": self.size})
    }
}

/// What a program is linked to, its loader included; nothing, if it is static.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("ldd cannot be run")?;
    let said = String::from_utf8(output.stdout)?;
    let paths = said.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).filter(|path| path.is_file()).collect())
}

/// The machine's, as Go calls it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn executable(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn tar(archive: &Path, directory: &Path) -> anyhow::Result<()> {
    let output = Command::new("tar")
        .args(["--owner=0", "--group=0", "-cf"])
        .arg(archive)
        .arg("-C")
        .arg(directory)
        .arg(".")
        .output()
        .context("tar cannot be run")?;
    ensure!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
