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
    Ok(vec![tools(directory)?, dns(directory, coredns)?])
}

/// Writes the image of [`TOOLS`], and returns its archive.
pub(super) fn tools(directory: &Path) -> anyhow::Result<PathBuf> {
    let tools = Image::new(directory, "tools", &[TOOLS], Start::Command(&["/bin/sleep", "2147483647"]))?;
    let root = tools.root();
    for path in ["bin", "tmp", "www/cgi-bin"] {
        std::fs::create_dir_all(root.join(path))?;
    }
    tools.add_linked(Path::new(BUSYBOX), "bin/busybox")?;
    let applets = Command::new(BUSYBOX).arg("--list").output()?;
    for applet in String::from_utf8(applets.stdout)?.lines().filter(|applet| *applet != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    executable(&root.join("www/cgi-bin/who"), WHO)?;
    tools.write()
}

fn dns(directory: &Path, coredns: &Path) -> anyhow::Result<PathBuf> {
    let start = Start::Command(&["/coredns", "-conf", "/etc/coredns/Corefile"]);
    let dns = Image::new(directory, "coredns", &[COREDNS], start)?;
    dns.add(coredns, "coredns")?;
    dns.write()
}

/// What an image runs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Start<'a> {
    /// This, unless the pod says what else.
    Command(&'a [&'a str]),
    /// This, with the arguments of the pod.
    Entrypoint(&'a [&'a str]),
}

/// One image: what is in its directory's `root`, and what it runs.
pub(super) struct Image<'a> {
    names: Vec<String>,
    directory: PathBuf,
    start: Start<'a>,
}

impl<'a> Image<'a> {
    /// An empty one, whose archive will be called so in this directory.
    pub(super) fn new(
        directory: &Path,
        file: &str,
        names: &[&str],
        start: Start<'a>,
    ) -> anyhow::Result<Self> {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let image = Self { names, directory: directory.join(file), start };
        std::fs::create_dir_all(image.root())?;
        Ok(image)
    }

    /// Adds a program that needs nothing else, or any other file.
    pub(super) fn add(&self, program: &Path, to: &str) -> anyhow::Result<()> {
        let to = self.root().join(to);
        std::fs::create_dir_all(to.parent().context("a file is in a directory")?)?;
        std::fs::copy(program, to).with_context(|| format!("{} is not there", program.display()))?;
        Ok(())
    }

    /// Adds a program of this machine with the libraries that it is linked to, if it is.
    pub(super) fn add_linked(&self, program: &Path, to: &str) -> anyhow::Result<()> {
        self.add(program, to)?;
        for library in libraries(program)? {
            let inside = library.strip_prefix("/").unwrap_or(&library).to_string_lossy().into_owned();
            self.add(&library, &inside)?;
        }
        Ok(())
    }

    pub(super) fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    /// Writes the archive, of which alone something is left, and returns where it is.
    pub(super) fn write(&self) -> anyhow::Result<PathBuf> {
        let archive = self.directory.with_extension("tar");
        let tree = self.directory.join("oci");
        let blobs = tree.join("blobs/sha256");
        std::fs::create_dir_all(&blobs)?;
        let layer = self.directory.join("layer.tar");
        tar(&layer, &self.root())?;
        let layer = Blob::put(&blobs, &std::fs::read(&layer)?, "application/vnd.oci.image.layer.v1.tar")?;
        let mut config = json!({"Env": ["PATH=/bin:/sbin:/usr/sbin:/usr/bin:/usr/local/bin"]});
        match self.start {
            Start::Command(command) => config["Cmd"] = json!(command),
            Start::Entrypoint(entrypoint) => config["Entrypoint"] = json!(entrypoint),
        }
        let configuration = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": config,
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
        let named = |name: &String| {
            let mut descriptor = manifest.descriptor();
            descriptor["annotations"] = json!({"io.containerd.image.name": name});
            descriptor
        };
        std::fs::write(tree.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
        let index =
            json!({"schemaVersion": 2, "manifests": self.names.iter().map(named).collect::<Vec<_>>()});
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

/// Writes a script.
pub(super) fn executable(path: &Path, text: &str) -> anyhow::Result<()> {
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
