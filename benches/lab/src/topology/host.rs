//! A host: a namespace with one interface, and what its processes see.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use super::{Ipv4, Ipv6, NAME_SERVER, NAME_SERVER_V6, Ping};
use crate::netns::{self, Netns};
use crate::process::{HostCommand, Surroundings};
use crate::run::Lab;

/// How long a single echo is waited for.
const ECHO_PATIENCE: Duration = Duration::from_secs(2);
/// Between echoes of one run of `ping`; the least that any user may ask for.
const ECHO_INTERVAL: Duration = Duration::from_millis(200);

/// One host of a network.
#[derive(Debug)]
pub struct Host {
    name: String,
    netns: Netns,
    files: PathBuf,
    logs: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    site: String,
    address: Option<Ipv4Addr>,
    address_v6: Option<Ipv6Addr>,
    /// How it is attached, if it is.
    attachment: Option<Attachment>,
    /// Lines of the `hosts` file beyond the usual ones.
    entries: Vec<(String, IpAddr)>,
    /// Directories and files of its own in place of the machine's: what is seen, and where.
    covered: Vec<(PathBuf, PathBuf)>,
}

impl Host {
    pub(crate) fn make(lab: &Lab, name: &str, site: &str) -> anyhow::Result<Self> {
        let netns = lab.namespace(name)?;
        let files = lab.directory().join("etc").join(name);
        std::fs::create_dir_all(&files)?;
        let state = Mutex::new(State { site: site.to_owned(), ..State::default() });
        let host = Self { name: name.to_owned(), netns, files, logs: lab.directory().join("logs"), state };
        host.write_hosts()?;
        host.write_resolver(Ipv4::Present, Ipv6::None)?;
        Ok(host)
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The site where the host is now.
    pub fn site(&self) -> String {
        self.state().site.clone()
    }

    /// The IPv4 address of `eth0`; unspecified while the host is nowhere, or where there is no IPv4.
    pub fn address(&self) -> Ipv4Addr {
        self.state().address.unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// The global IPv6 address of `eth0`, if the site has IPv6.
    pub fn address_v6(&self) -> Option<Ipv6Addr> {
        self.state().address_v6
    }

    /// The namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// A program to be run here.
    pub fn command(&self, program: impl AsRef<OsStr>) -> HostCommand {
        HostCommand::new(program.as_ref(), self.surroundings(), self.logs.clone())
    }

    /// What processes of this host see.
    pub fn surroundings(&self) -> Surroundings {
        let file = |name: &str| (self.files.join(name), Path::new("/etc").join(name));
        let mut files = vec![file("resolv.conf"), file("hosts")];
        files.extend(self.state().covered.iter().cloned());
        Surroundings { netns: netns::path_of(self.netns.name()), hostname: self.name.clone(), files }
    }

    /// Gives the host a directory of its own at `target`, where processes that are started from now on see `source`.
    ///
    /// # Errors
    ///
    /// If the machine has no such directory and none can be made: something must be there to be covered.
    pub fn set_directory(&self, target: &Path, source: &Path) -> anyhow::Result<()> {
        for directory in [target, source] {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("directory {}", directory.display()))?;
        }
        self.cover(target, source);
        Ok(())
    }

    /// Gives the host a file of its own at `target`, where processes that are started from now on see `source`.
    ///
    /// # Errors
    ///
    /// If one of the two is no file: something must be there to be covered.
    pub fn set_file(&self, target: &Path, source: &Path) -> anyhow::Result<()> {
        for file in [target, source] {
            ensure!(file.is_file(), "there is no file {}", file.display());
        }
        self.cover(target, source);
        Ok(())
    }

    fn cover(&self, target: &Path, source: &Path) {
        let mut state = self.state();
        state.covered.retain(|(_, known)| known != target);
        state.covered.push((source.to_owned(), target.to_owned()));
    }

    /// Writes a name into the host's `/etc/hosts`, for running processes too; `None` takes it out.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn set_hosts_entry(&self, name: &str, address: Option<IpAddr>) -> anyhow::Result<()> {
        {
            let mut state = self.state();
            state.entries.retain(|(known, _)| known != name);
            state.entries.extend(address.map(|address| (name.to_owned(), address)));
        }
        self.write_hosts()
    }

    /// Sends one echo request and returns the round trip.
    ///
    /// # Errors
    ///
    /// If no reply comes within two seconds.
    pub fn ping(&self, to: impl Into<IpAddr>) -> anyhow::Result<Duration> {
        let to = to.into();
        let ping = self.ping_many(to, 1)?;
        match ping.round_trips.first() {
            Some(round_trip) => Ok(*round_trip),
            None => bail!("{} gets no reply from {to}", self.name),
        }
    }

    /// Sends `count` echo requests, five a second, and returns what came back.
    ///
    /// # Errors
    ///
    /// If `ping` cannot be run; lost replies are no error.
    pub fn ping_many(&self, to: impl Into<IpAddr>, count: u32) -> anyhow::Result<Ping> {
        self.ping_every(to, count, ECHO_INTERVAL)
    }

    /// Sends `count` echo requests, one per `interval`, and returns what came back.
    ///
    /// # Errors
    ///
    /// As [`Host::ping_many`].
    pub fn ping_every(&self, to: impl Into<IpAddr>, count: u32, interval: Duration) -> anyhow::Result<Ping> {
        let patience = ECHO_PATIENCE.as_secs().to_string();
        let seconds = interval.as_secs_f64().to_string();
        let finished = self
            .command("ping")
            .args(["-n", "-c", &count.to_string(), "-i", &seconds, "-W", &patience])
            .arg(to.into().to_string())
            .timeout(ECHO_PATIENCE * 2 + interval * count)
            .output()?;
        Ping::parse(&finished)
    }

    /// Takes the link of `eth0` down, as who pulls the cable: its routes go, its IPv4 address stays.
    ///
    /// # Errors
    ///
    /// If the host is nowhere.
    pub fn link_down(&self) -> anyhow::Result<()> {
        self.netns.ip("link set eth0 down\n")
    }

    /// Brings the link of `eth0` up again, with the addresses and routes that it had.
    ///
    /// # Errors
    ///
    /// If the host is nowhere.
    pub fn link_up(&self) -> anyhow::Result<()> {
        let place = self.state().attachment.clone();
        self.configure(&place.with_context(|| format!("{} is nowhere", self.name))?)
    }

    /// Gives `eth0`, which must exist, its addresses and default routes.
    pub(super) fn configure(&self, place: &Attachment) -> anyhow::Result<()> {
        let Attachment { site, v4, v6 } = place;
        let mut batch = "link set eth0 up\n".to_owned();
        if let Some(AttachmentV4 { address, prefix, gateway }) = v4 {
            let _ = writeln!(batch, "addr replace {address}/{prefix} dev eth0");
            let _ = match gateway {
                Some(gateway) => writeln!(batch, "route replace default via {gateway} dev eth0"),
                None => writeln!(batch, "route replace default dev eth0"),
            };
        }
        if let Some((address, gateway)) = v6 {
            let _ = writeln!(batch, "addr replace {address}/64 dev eth0 nodad");
            let _ = match gateway {
                Some(gateway) => writeln!(batch, "route replace ::/0 via {gateway} dev eth0"),
                None => writeln!(batch, "route replace ::/0 dev eth0"),
            };
        } else {
            self.netns.sysctl(&[("net.ipv6.conf.eth0.disable_ipv6", "1")])?;
        }
        self.netns.ip(&batch)?;
        let mut state = self.state();
        state.site.clone_from(site);
        state.address = v4.as_ref().map(|v4| v4.address);
        state.address_v6 = v6.map(|(address, _)| address);
        state.attachment = Some(place.clone());
        drop(state);
        let ipv4 = if v4.is_some() { Ipv4::Present } else { Ipv4::Absent };
        self.write_resolver(ipv4, if v6.is_some() { Ipv6::Open } else { Ipv6::None })
    }

    /// Notes a new address that was set by other means.
    pub(super) fn note_address(&self, address: Ipv4Addr) {
        let mut state = self.state();
        state.address = Some(address);
        if let Some(v4) = state.attachment.as_mut().and_then(|place| place.v4.as_mut()) {
            v4.address = address;
        }
    }

    /// Notes that `eth0` is gone.
    pub(super) fn note_detached(&self) {
        let mut state = self.state();
        state.address = None;
        state.address_v6 = None;
        state.attachment = None;
    }

    /// Names the name server by every family that there is, as a router does that announces it.
    fn write_resolver(&self, ipv4: Ipv4, ipv6: Ipv6) -> anyhow::Result<()> {
        let mut text = String::new();
        if ipv4 == Ipv4::Present {
            let _ = writeln!(text, "nameserver {NAME_SERVER}");
        }
        if ipv6 != Ipv6::None {
            let _ = writeln!(text, "nameserver {NAME_SERVER_V6}");
        }
        text.push_str("options timeout:1 attempts:3\n");
        // In place, as below.
        std::fs::write(self.files.join("resolv.conf"), text).context("resolv.conf")
    }

    fn write_hosts(&self) -> anyhow::Result<()> {
        let mut text = format!("127.0.0.1 localhost {}\n::1 localhost\n", self.name);
        for (name, address) in &self.state().entries {
            let _ = writeln!(text, "{address} {name}");
        }
        // In place: running processes see this very file through their bind mount.
        std::fs::write(self.files.join("hosts"), text).context("hosts file")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A host's IPv4 address, and the way out.
#[derive(Debug, Clone)]
pub(super) struct AttachmentV4 {
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
    /// None on a point-to-point line.
    pub(super) gateway: Option<Ipv4Addr>,
}

/// Where and how a host is attached.
#[derive(Debug, Clone)]
pub(super) struct Attachment {
    pub(super) site: String,
    pub(super) v4: Option<AttachmentV4>,
    pub(super) v6: Option<(Ipv6Addr, Option<Ipv6Addr>)>,
}
