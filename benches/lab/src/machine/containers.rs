//! What a machine takes to run containers of its own, as a kubelet has them: a container in a container is refused a
//! few things that a real machine gives to everybody.
//!
//! - Control groups may be written, in all hierarchies; `systemd-nspawn` leaves only systemd's own.
//! - What kubelet sets for the whole kernel ends in files: the lab's machine is not its own. Settings of the network are real.
//! - `/dev/kmsg` is there and silent: kubelet reads of the kernel's out-of-memory killer from it.
//! - Images and volumes lie on a file system of the lab's machine: overlays on the machine's own overlay are not possible.
//! - runc may use the kernel's keys, which `systemd-nspawn` forbids.

use std::ffi::OsString;
use std::path::Path;

use super::Disk;

/// Where the first of the two files is on a machine.
const SCRIPT: &str = "/usr/local/lib/lab/containers";
/// Is run before everything else, once per boot.
const PREPARE: &str = include_str!("containers.sh");
/// Has systemd run it.
const UNIT: &str = "[Unit]\n\
    DefaultDependencies=no\n\
    Before=sysinit.target systemd-sysctl.service systemd-modules-load.service\n\
    After=local-fs.target\n\
    [Service]\n\
    Type=oneshot\n\
    RemainAfterExit=yes\n\
    ExecStart=/usr/local/lib/lab/containers\n\
    [Install]\n\
    WantedBy=sysinit.target\n";
/// What keeps images and volumes.
const ON_DISK: [&str; 5] =
    ["/var/lib/containerd", "/var/lib/kubelet", "/var/lib/etcd", "/var/lib/rancher", "/var/log/pods"];

impl Disk {
    /// Lets the machine run containers; its name is the host's, as it is the name of a Node.
    ///
    /// # Errors
    ///
    /// If the disk is full.
    pub fn for_containers(mut self, host: &str) -> anyhow::Result<Self> {
        self.write("/etc/hostname", 0o644, &format!("{host}\n"))?;
        self.write(SCRIPT, 0o755, PREPARE)?;
        self.write("/etc/systemd/system/lab-containers.service", 0o644, UNIT)?;
        let wanted = self.own.join("upper/etc/systemd/system/sysinit.target.wants");
        std::fs::create_dir_all(&wanted)?;
        std::os::unix::fs::symlink(
            "/etc/systemd/system/lab-containers.service",
            wanted.join("lab-containers.service"),
        )?;
        for path in ON_DISK {
            let source = self.directory(&path.trim_start_matches('/').replace('/', "-"))?;
            let mut option = OsString::from("--bind=");
            option.push(source);
            option.push(":");
            option.push(path);
            self = self.option(option);
        }
        Ok(self.option("--system-call-filter=add_key keyctl bpf"))
    }

    /// Has a program of the lab's machine in the directory of those of the system.
    #[must_use]
    pub fn program(self, path: &Path, name: &str) -> Self {
        let mut option = OsString::from("--bind-ro=");
        option.push(path);
        option.push(format!(":/usr/bin/{name}"));
        self.option(option)
    }
}
