//! `kubectl`, as the administrator runs it beside the control plane.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use crate::process::{Finished, HostCommand};
use crate::topology::{Host, Network};

/// For what waits inside of `kubectl`, beyond what it is told.
const PATIENCE: Duration = Duration::from_secs(60);

/// `kubectl` on a host, with a kubeconfig.
#[derive(Debug)]
pub struct Kubectl {
    network: Arc<Network>,
    host: String,
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    pub(super) fn new(network: Arc<Network>, host: &str, program: PathBuf, kubeconfig: PathBuf) -> Self {
        Self { network, host: host.to_owned(), program, kubeconfig }
    }

    /// The host on which it runs.
    pub fn host(&self) -> &Host {
        self.network.host(&self.host).expect("a network keeps the hosts that it was built with")
    }

    /// A command that is to be given arguments.
    pub fn command(&self) -> HostCommand {
        self.host()
            .command(&self.program)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", "/nonexistent")
            .timeout(PATIENCE)
    }

    /// Runs it with these arguments and returns what it prints.
    ///
    /// # Errors
    ///
    /// If it fails, with what it says.
    pub fn run(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> anyhow::Result<String> {
        Ok(self.command().args(args).output()?.success()?.stdout)
    }

    /// As [`Kubectl::run`], but a refusal is an answer and not an error.
    ///
    /// # Errors
    ///
    /// If it does not end.
    pub fn try_run(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> anyhow::Result<Finished> {
        self.command().args(args).output()
    }

    /// What `get` prints of these arguments, as JSON.
    ///
    /// # Errors
    ///
    /// If it fails.
    pub fn get<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> anyhow::Result<Value> {
        let args = ["get", "-o", "json"].into_iter().chain(args);
        serde_json::from_str(&self.run(args)?).context("kubectl get -o json")
    }

    /// Applies a manifest.
    ///
    /// # Errors
    ///
    /// If the API server refuses it.
    pub fn apply(&self, manifest: &str) -> anyhow::Result<()> {
        let mut file = std::fs::File::create(self.kubeconfig.with_extension("manifest"))?;
        file.write_all(manifest.as_bytes())?;
        self.run([
            OsStr::new("apply"),
            OsStr::new("-f"),
            self.kubeconfig.with_extension("manifest").as_os_str(),
        ])
        .map(drop)
    }

    /// Runs a shell's line in a pod.
    ///
    /// # Errors
    ///
    /// If it fails there.
    pub fn shell(&self, pod: &str, line: &str) -> anyhow::Result<String> {
        self.run(["exec", pod, "--", "/bin/sh", "-c", line])
    }
}
