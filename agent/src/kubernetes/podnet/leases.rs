//! The pods' addresses, as host-local keeps them, and which of them are still a pod's.
//!
//! host-local has a file for each address that it gave, named by the address, with the container and the interface that
//! it is for. One that a crashed runtime never gave back stays for ever, until none is left. So `mesh-cni`, the
//! last plugin of the chain, notes beside them which device of the host leads to the pod. That device is gone
//! when the pod's network namespace is: an address whose device is gone is nobody's.
//!
//! ```text
//!   DIR/mesh/10.244.1.7        CONTAINER \r\n eth0        (host-local)
//!   DIR/attached/CONTAINER.eth0   veth1234                (mesh-cni)
//! ```
//!
//! An address without a note is of a pod that is being made, or whose making was cut off: it is left alone for
//! [`GRACE`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use rustix::fs::{FlockOperation, flock};

use super::conflist::{self, NETWORK};

/// Longer than the runtime waits for all plugins of a pod together: two minutes is the kubelet's limit.
const GRACE: Duration = Duration::from_secs(600);
/// host-local's lock.
const LOCK: &str = "lock";
/// Where the notes are.
const ATTACHED: &str = "attached";

/// A container's interface: what an address is given to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Attachment {
    /// The container's name at the runtime.
    pub(super) container: String,
    /// The interface's name in the pod.
    pub(super) interface: String,
}

/// An address that is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lease {
    /// The address.
    pub(super) address: IpAddr,
    /// To whom.
    pub(super) holder: Attachment,
    /// For how long.
    pub(super) age: Duration,
}

/// What is to be done about the addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Plan {
    /// These are nobody's.
    pub(super) free: Vec<IpAddr>,
    /// Pods that have an address of another range than the node's.
    pub(super) of_old_range: usize,
}

/// The directory of host-local, and the notes.
#[derive(Debug, Clone)]
pub(super) struct Leases {
    dir: PathBuf,
}

impl Leases {
    /// Names the directory; nothing is read yet.
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Notes which device of the host leads to a pod.
    pub(super) fn note(&self, holder: &Attachment, device: &str) -> io::Result<()> {
        let path = self.note_path(holder)?;
        conflist::make_dir(mesh_durable::folder_of(&path))?;
        // In memory, and short: there is no half of it.
        fs::write(path, device)
    }

    /// Returns the device that leads to a pod.
    pub(super) fn noted(&self, holder: &Attachment) -> io::Result<String> {
        fs::read_to_string(self.note_path(holder)?)
    }

    /// Forgets a pod.
    pub(super) fn forget(&self, holder: &Attachment) -> io::Result<()> {
        match fs::remove_file(self.note_path(holder)?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Frees what is nobody's; `devices` are the host's.
    pub(super) fn sweep(&self, devices: &BTreeSet<String>, own: &[IpNet]) -> io::Result<Plan> {
        let given = self.list()?;
        let mut notes = BTreeMap::new();
        for lease in &given {
            match self.noted(&lease.holder) {
                Ok(device) => drop(notes.insert(lease.holder.clone(), device)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let plan = plan(&given, &notes, devices, own);
        self.free(given.iter().filter(|lease| plan.free.contains(&lease.address)))?;
        Ok(plan)
    }

    /// Frees all addresses but those of these holders; returns how many.
    pub(super) fn keep_only(&self, valid: &BTreeSet<Attachment>) -> io::Result<usize> {
        let given = self.list()?;
        let gone: Vec<_> = given.iter().filter(|lease| !valid.contains(&lease.holder)).collect();
        self.free(gone.iter().copied())?;
        Ok(gone.len())
    }

    /// Lists what is given.
    fn list(&self) -> io::Result<Vec<Lease>> {
        let entries = match fs::read_dir(self.dir.join(NETWORK)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut leases = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let Some(address) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            // One that is given back at this moment.
            let Ok(text) = fs::read_to_string(entry.path()) else { continue };
            let Some(holder) = holder_in(&text) else { continue };
            let since =
                entry.metadata().and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::now());
            leases.push(Lease { address, holder, age: since.elapsed().unwrap_or_default() });
        }
        leases.sort_by_key(|lease| lease.address);
        Ok(leases)
    }

    /// Gives addresses back, while host-local waits, as far as they are still whose they were.
    fn free<'a>(&self, leases: impl Iterator<Item = &'a Lease>) -> io::Result<()> {
        let mut leases = leases.peekable();
        if leases.peek().is_none() {
            return Ok(());
        }
        let dir = self.dir.join(NETWORK);
        let _lock = lock(&dir)?;
        for lease in leases {
            let path = dir.join(lease.address.to_string());
            let still = fs::read_to_string(&path).ok().and_then(|text| holder_in(&text));
            if still.as_ref() == Some(&lease.holder) {
                fs::remove_file(path)?;
                self.forget(&lease.holder)?;
            }
        }
        Ok(())
    }

    fn note_path(&self, holder: &Attachment) -> io::Result<PathBuf> {
        let Attachment { container, interface } = holder;
        let plain = |text: &str| !text.is_empty() && !text.contains(['/', '\0']) && !text.starts_with('.');
        if !plain(container) || !plain(interface) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a container's name"));
        }
        Ok(self.dir.join(ATTACHED).join(format!("{container}.{interface}")))
    }
}

/// Decides which addresses are nobody's.
fn plan(
    given: &[Lease],
    notes: &BTreeMap<Attachment, String>,
    devices: &BTreeSet<String>,
    own: &[IpNet],
) -> Plan {
    let mut plan = Plan::default();
    let mut old = BTreeSet::new();
    for lease in given {
        let lives = match notes.get(&lease.holder) {
            Some(device) => devices.contains(device),
            None => lease.age < GRACE,
        };
        if !lives {
            plan.free.push(lease.address);
        } else if !own.iter().any(|range| range.contains(&lease.address)) {
            old.insert(&lease.holder);
        }
    }
    plan.of_old_range = old.len();
    plan
}

fn lock(dir: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join(LOCK))?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

fn holder_in(text: &str) -> Option<Attachment> {
    let mut lines = text.lines().map(str::trim);
    let container = lines.next().filter(|line| !line.is_empty())?.to_owned();
    // Before its version 0.7 host-local did not write the interface.
    Some(Attachment { container, interface: lines.next().unwrap_or("eth0").to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(container: &str) -> Attachment {
        Attachment { container: container.to_owned(), interface: "eth0".to_owned() }
    }

    #[test]
    fn an_address_is_free_when_its_device_is_gone_or_nobody_came_for_it() {
        let lease = |address: &str, container: &str, age: u64| Lease {
            address: address.parse().unwrap(),
            holder: holder(container),
            age: Duration::from_secs(age),
        };
        let given = [
            lease("10.244.1.2", "lives", 9999),
            lease("10.244.1.3", "crashed", 5),
            lease("10.244.1.4", "being-made", 5),
            lease("10.244.1.5", "cut-off", 601),
            lease("10.244.9.2", "of-old-range", 9999),
            lease("fd00:9::2", "of-old-range", 9999),
            lease("10.244.9.3", "crashed-before", 9999),
        ];
        let notes = [
            ("lives", "veth1"),
            ("crashed", "veth2"),
            ("of-old-range", "veth3"),
            ("crashed-before", "veth4"),
        ];
        let notes = notes.map(|(container, device)| (holder(container), device.to_owned())).into();
        let devices = ["veth1", "veth3", "eth0"].map(str::to_owned).into();
        let plan = plan(&given, &notes, &devices, &["10.244.1.0/24".parse().unwrap()]);
        let free = ["10.244.1.3", "10.244.1.5", "10.244.9.3"].map(|address| address.parse().unwrap());
        assert_eq!(plan, Plan { free: free.to_vec(), of_old_range: 1 });
    }

    #[test]
    fn files_of_host_local_are_read_and_freed_with_their_notes() {
        let root = tempfile::tempdir().unwrap();
        let leases = Leases::new(root.path());
        assert_eq!(leases.sweep(&BTreeSet::new(), &[]).unwrap(), Plan::default(), "nothing is there yet");
        let dir = root.path().join(NETWORK);
        conflist::make_dir(&dir).unwrap();
        for (address, container) in
            [("10.244.1.2", "kept"), ("fd00:10:244:1::2", "kept"), ("10.244.1.3", "gone")]
        {
            fs::write(dir.join(address), format!("{container}\r\neth0")).unwrap();
        }
        fs::write(dir.join("last_reserved_ip.0"), "10.244.1.3").unwrap();
        leases.note(&holder("kept"), "veth1").unwrap();
        leases.note(&holder("gone"), "veth2").unwrap();
        let devices = BTreeSet::from(["veth1".to_owned()]);
        let freed = leases.sweep(&devices, &["10.244.1.0/24".parse().unwrap(), "fd00::/16".parse().unwrap()]);
        assert_eq!(freed.unwrap().free, ["10.244.1.3".parse::<IpAddr>().unwrap()]);
        assert!(!dir.join("10.244.1.3").exists() && dir.join("10.244.1.2").exists());
        assert!(leases.noted(&holder("gone")).is_err());
        assert_eq!(leases.noted(&holder("kept")).unwrap(), "veth1");
        assert_eq!(leases.keep_only(&[holder("kept")].into()).unwrap(), 0);
        assert_eq!(leases.keep_only(&BTreeSet::new()).unwrap(), 2);
        assert!(!dir.join("fd00:10:244:1::2").exists());
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_refused() {
        let root = tempfile::tempdir().unwrap();
        for name in ["../x", "", ".hidden", "a/b"] {
            assert!(Leases::new(root.path()).note(&holder(name), "veth1").is_err(), "{name:?}");
        }
    }
}
