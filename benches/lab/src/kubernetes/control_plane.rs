//! The control plane: etcd, the API server, the controller manager and the scheduler, as processes of one host.
//!
//! The API server is known by its host's mesh address alone, to workers and to the pods' Service `kubernetes`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::binaries::Binaries;
use super::kubectl::Kubectl;
use super::pki::{Identity, Pki, Subject};
use super::{Families, POD_RANGE, POD_RANGE_V6, SERVICE_RANGE, SERVICE_RANGE_V6};
use crate::mesh::{Daemon, wait_until};
use crate::topology::Network;

/// Where the API server listens.
pub(super) const PORT: u16 = 6443;
/// The controller manager's place among the daemons.
const CONTROLLERS: usize = 1;
/// How long the API server may take, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running control plane.
#[derive(Debug)]
pub(super) struct ControlPlane {
    etcd: Daemon,
    /// The API server first: the others want it; then the controller manager and the scheduler.
    daemons: [Daemon; 3],
    kubectl: Kubectl,
}

/// Where a control plane is.
pub(super) struct Place<'a> {
    pub(super) network: &'a Arc<Network>,
    pub(super) host: &'a str,
    /// Its host's, in the mesh.
    pub(super) address: IpAddr,
    /// A name that leads there without the mesh.
    pub(super) public_name: Option<&'a str>,
    /// Which addresses it gives away.
    pub(super) families: Families,
}

/// The way to the API server by a name, for whoever is given a kubeconfig.
pub(super) fn server(name: &str) -> String {
    format!("https://{name}:{PORT}")
}

/// The same by an address.
pub(super) fn server_at(address: IpAddr) -> String {
    format!("https://{}", SocketAddr::new(address, PORT))
}

impl ControlPlane {
    /// Starts everything on a host with this mesh address, and waits until the API server is ready.
    pub(super) fn start(
        place: &Place<'_>,
        binaries: &Binaries,
        pki: &Pki,
        directory: &Path,
    ) -> anyhow::Result<Self> {
        let Place { network, host, address, public_name: _, families } = *place;
        let server = server_at(address);
        let user = |file: &str, name: &str, group: Option<&str>| {
            pki.kubeconfig(file, &server, &Subject { name, group, serves: &[] })
        };
        let daemon = |program: PathBuf, args: Vec<String>| {
            Daemon::new(Arc::clone(network), host, program, args.into_iter().map(Into::into).collect())
        };
        let kubectl = Kubectl::new(
            Arc::clone(network),
            host,
            binaries.path("kubectl"),
            user("admin", "admin", Some("system:masters"))?,
        );
        let etcd = daemon("etcd".into(), etcd(&directory.join("etcd")));
        let manager = user("controller-manager", "system:kube-controller-manager", None)?;
        let scheduler = user("scheduler", "system:kube-scheduler", None)?;
        let daemons = [
            daemon(binaries.path("kube-apiserver"), api_server(place, pki)?),
            daemon(binaries.path("kube-controller-manager"), controller_manager(&manager, families, pki)),
            daemon(
                binaries.path("kube-scheduler"),
                vec![
                    argument("kubeconfig", scheduler.display()),
                    "--leader-elect=false".to_owned(),
                    "--secure-port=0".to_owned(),
                ],
            ),
        ];
        let plane = Self { etcd, daemons, kubectl };
        plane.resume()?;
        Ok(plane)
    }

    /// Starts what does not run, and waits until the API server is ready.
    pub(super) fn resume(&self) -> anyhow::Result<()> {
        self.etcd.start()?;
        let [api_server, others @ ..] = &self.daemons;
        api_server.start()?;
        wait_until(PATIENCE, "the API server is ready", || {
            self.kubectl.run(["get", "--raw", "/readyz"]).map(|_| true)
        })?;
        others.iter().try_for_each(Daemon::start)
    }

    /// Kills everything but what is stored, as a power failure does.
    pub(super) fn kill(&self) -> anyhow::Result<()> {
        self.daemons
            .iter()
            .chain([&self.etcd])
            .try_for_each(|daemon| daemon.kill(nix::sys::signal::Signal::SIGKILL))
    }

    /// Kills the controller manager.
    pub(super) fn kill_controllers(&self) -> anyhow::Result<()> {
        self.daemons[CONTROLLERS].kill(nix::sys::signal::Signal::SIGKILL)
    }

    /// `kubectl`, as the cluster's administrator.
    pub(super) fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }
}

fn argument(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}

fn etcd(directory: &Path) -> Vec<String> {
    vec![
        argument("data-dir", directory.display()),
        "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
        "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
        "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
        // The machine itself is not expected to fail.
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
    ]
}

fn api_server(place: &Place<'_>, pki: &Pki) -> anyhow::Result<Vec<String>> {
    let Place { address, public_name, families, .. } = *place;
    let serves =
        [address, families.api_service(), Ipv4Addr::LOCALHOST.into()].map(|address| format!("IP:{address}"));
    let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"].into_iter().chain(public_name);
    let serves: Vec<String> = serves.into_iter().chain(names.map(|name| format!("DNS:{name}"))).collect();
    let Identity { certificate, key } =
        pki.sign("api-server", &Subject { name: "kube-apiserver", group: None, serves: &serves })?;
    let to_kubelets = pki.sign(
        "to-kubelets",
        &Subject { name: "kube-apiserver-kubelet-client", group: Some("system:masters"), serves: &[] },
    )?;
    Ok(vec![
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        argument("secure-port", PORT),
        argument("advertise-address", address),
        argument("service-cluster-ip-range", families.list([SERVICE_RANGE, SERVICE_RANGE_V6])),
        argument("tls-cert-file", certificate.display()),
        argument("tls-private-key-file", key.display()),
        argument("client-ca-file", pki.authority().display()),
        argument("kubelet-certificate-authority", pki.authority().display()),
        argument("kubelet-client-certificate", to_kubelets.certificate.display()),
        argument("kubelet-client-key", to_kubelets.key.display()),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        argument("service-account-signing-key-file", pki.accounts_key().display()),
        argument("service-account-key-file", pki.accounts_public().display()),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        // It asks for what Debian's etcd cannot answer, and complains each second.
        "--feature-gates=SizeBasedListCostEstimate=false".to_owned(),
    ])
}

fn controller_manager(kubeconfig: &Path, families: Families, pki: &Pki) -> Vec<String> {
    vec![
        argument("kubeconfig", kubeconfig.display()),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
        "--allocate-node-cidrs=true".to_owned(),
        argument("cluster-cidr", families.list([POD_RANGE, POD_RANGE_V6])),
        argument("service-cluster-ip-range", families.list([SERVICE_RANGE, SERVICE_RANGE_V6])),
        argument("root-ca-file", pki.authority().display()),
        argument("service-account-private-key-file", pki.accounts_key().display()),
        "--use-service-account-credentials=true".to_owned(),
    ]
}
