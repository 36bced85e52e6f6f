//! Debians that are installed once, by debootstrap, and shared by all machines: they only read them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

/// Which Debian.
const RELEASE: &str = "bookworm";

/// What is installed.
#[derive(Debug, Clone, Copy)]
pub struct System {
    /// Beside Debian's least.
    included: &'static [&'static str],
    /// What `apt install` finds without a network: packages that were fetched and not installed.
    at_hand: &'static [&'static str],
}

/// What our packages depend on, and what tests look with.
pub const PLAIN: System = System {
    included: &["systemd", "systemd-sysv", "dbus", "iproute2", "iputils-ping", "nftables", "procps"],
    at_hand: &[],
};

/// What somebody has who wants to run containers, before a guide of ours says what else to install.
pub const CONTAINERS: System = System {
    included: &[
        "systemd",
        "systemd-sysv",
        "dbus",
        "iproute2",
        "iputils-ping",
        "procps",
        "sudo",
        "python3",
        "kmod",
        "mount",
        "ca-certificates",
        "iptables",
        "ethtool",
        "socat",
        "conntrack",
        "containerd",
        "runc",
    ],
    at_hand: &["containernetworking-plugins", "nftables", "netbase", "firewalld", "network-manager"],
};

impl System {
    /// Where it is installed; it is, if it was not.
    pub(super) fn installed(self) -> anyhow::Result<PathBuf> {
        let cache = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
            .context("neither XDG_CACHE_HOME nor HOME is set")?
            .join("mesh-lab");
        let system = cache.join(self.name());
        if system.exists() {
            return Ok(system);
        }
        // Others may make it at the same time: it gets its name when it is whole.
        let draft = cache.join(format!("draft-{}", std::process::id()));
        std::fs::create_dir_all(&draft)?;
        if let Err(error) = self.install(&draft) {
            std::fs::remove_dir_all(&draft)?;
            return Err(error);
        }
        match std::fs::rename(&draft, &system) {
            Ok(()) => {}
            Err(_) if system.exists() => std::fs::remove_dir_all(&draft)?,
            Err(error) => return Err(error).context("the installed system"),
        }
        Ok(system)
    }

    /// Tells systems apart: one whose packages are others is another one.
    fn name(self) -> String {
        if self.at_hand.is_empty() {
            return format!("debian-{RELEASE}-{}", self.included.join("+"));
        }
        let all = format!("{}/{}", self.included.join("+"), self.at_hand.join("+"));
        let digest: String = Sha256::digest(all).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        format!("debian-{RELEASE}-{digest}")
    }

    fn install(self, root: &Path) -> anyhow::Result<()> {
        let included = format!("--include={}", self.included.join(","));
        let made =
            Command::new("debootstrap").args(["--variant=minbase", &included, RELEASE]).arg(root).output();
        succeeded(&made.context("debootstrap")?)?;
        if self.at_hand.is_empty() {
            return Ok(());
        }
        let in_it = |program: &str, args: &[&str]| -> anyhow::Result<()> {
            let output = Command::new("chroot")
                .arg(root)
                .arg(program)
                .args(args)
                .env("PATH", "/usr/sbin:/usr/bin")
                .output();
            succeeded(&output.with_context(|| program.to_owned())?)
        };
        in_it("apt-get", &["clean"])?;
        in_it("apt-get", &["update"])?;
        let fetch = ["install", "--yes", "--download-only"];
        in_it("apt-get", &fetch.iter().chain(self.at_hand).copied().collect::<Vec<_>>())
    }
}

fn succeeded(output: &Output) -> anyhow::Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    bail!("{RELEASE} cannot be installed: {}{}", text(&output.stdout), text(&output.stderr))
}
