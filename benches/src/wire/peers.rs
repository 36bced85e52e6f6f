//! The programs that we are measured beside: fetched once, by the tools of their own languages.
//!
//! Go programs come by `go install`, the Rust one by `cargo install`; each tool uses its own configuration, so that
//! a proxy or a mirror set up there is honoured. Everything lies in one folder and is not fetched again. A program that
//! cannot be had is left out and named in the report.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use super::Kind;

/// Where they are kept.
pub const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench/peers");

const WIREGUARD_GO: &str = "golang.zx2c4.com/wireguard@latest";
const NEBULA: [&str; 2] =
    ["github.com/slackhq/nebula/cmd/nebula@v1.10.3", "github.com/slackhq/nebula/cmd/nebula-cert@v1.10.3"];
/// The newest release of the last version line that was looked at.
const BORINGTUN: &str = "~0.7";

/// A peer's program, ready to run.
#[derive(Debug, Clone)]
pub struct Program {
    /// Which peer it is.
    pub kind: Kind,
    /// Where it lies.
    pub path: PathBuf,
    /// What it says of its version, and where it came from if that matters.
    pub version: String,
}

/// The programs that could be had, and why others could not.
#[derive(Debug, Default)]
pub struct Peers {
    /// Those that can be run.
    pub found: Vec<Program>,
    /// Those that cannot.
    pub missing: Vec<String>,
}

/// Gets every peer that is wanted, below `folder`.
#[must_use]
pub fn get(folder: &Path, is_wanted: impl Fn(Kind) -> bool) -> Peers {
    let mut peers = Peers::default();
    for kind in Kind::PEERS.into_iter().filter(|kind| is_wanted(*kind)) {
        let got = match kind {
            Kind::Mesh | Kind::MeshPods | Kind::MeshInnerV6 | Kind::MeshOuterV6 => continue,
            Kind::WireguardGo => newest_wireguard_go(folder).or_else(|reason| debian_wireguard_go(&reason)),
            Kind::Boringtun => boringtun(folder),
            Kind::Nebula => nebula(folder),
        };
        match got {
            Ok(program) => peers.found.push(program),
            Err(reason) => peers.missing.push(format!("{}: {reason:#}", kind.name())),
        }
    }
    peers
}

/// Finds a wireguard-go without fetching one: the newest if it is there already, else Debian's.
///
/// # Errors
/// When there is neither.
pub fn wireguard_go_at_hand(folder: &Path) -> anyhow::Result<Program> {
    let path = folder.join("bin/wireguard");
    if path.is_file() { wireguard_go(path, "") } else { debian_wireguard_go(&anyhow::anyhow!("not fetched")) }
}

fn newest_wireguard_go(folder: &Path) -> anyhow::Result<Program> {
    let path = folder.join("bin/wireguard");
    if !path.is_file() {
        go_install(folder, &[WIREGUARD_GO])?;
    }
    wireguard_go(path, "")
}

fn debian_wireguard_go(reason: &anyhow::Error) -> anyhow::Result<Program> {
    wireguard_go("wireguard-go".into(), &format!(" of Debian ({reason:#})"))
}

fn wireguard_go(path: PathBuf, from: &str) -> anyhow::Result<Program> {
    let version = version(&path, "--version")?;
    Ok(Program { kind: Kind::WireguardGo, path, version: version + from })
}

fn boringtun(folder: &Path) -> anyhow::Result<Program> {
    let path = folder.join("bin/boringtun-cli");
    if !path.is_file() {
        eprintln!("building boringtun-cli ...");
        let mut install = Command::new("cargo");
        install.args(["install", "boringtun-cli", "--locked", "--quiet", "--version", BORINGTUN]);
        install.arg("--root").arg(folder).arg("--target-dir").arg(folder.join("build"));
        run(&mut install)?;
    }
    let version = version(&path, "--version")?;
    Ok(Program { kind: Kind::Boringtun, path, version })
}

fn nebula(folder: &Path) -> anyhow::Result<Program> {
    let path = folder.join("bin/nebula");
    if !path.is_file() || !folder.join("bin/nebula-cert").is_file() {
        go_install(folder, &NEBULA)?;
    }
    let version = version(&path, "-version")?;
    Ok(Program { kind: Kind::Nebula, path, version })
}

fn go_install(folder: &Path, packages: &[&str]) -> anyhow::Result<()> {
    let bin = folder.join("bin");
    std::fs::create_dir_all(&bin)?;
    eprintln!("building {} ...", packages.join(" "));
    run(Command::new("go").arg("install").args(packages).env("GOBIN", std::path::absolute(bin)?))
}

fn version(path: &Path, option: &str) -> anyhow::Result<String> {
    let output =
        Command::new(path).arg(option).output().with_context(|| format!("cannot run {}", path.display()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let first = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("unknown version");
    Ok(first.trim().to_owned())
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("{program} is not here"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} failed: {}", said.lines().last().unwrap_or_default());
    Ok(())
}
