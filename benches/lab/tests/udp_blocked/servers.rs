//! Other people's servers, as Debian has them: nginx before the coordinator, tinyproxy and squid on the way.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use mesh_lab::Network;
use mesh_lab::mesh::wait_until;
use mesh_lab::process::Process;

const PATIENCE: Duration = Duration::from_secs(10);
/// Port of HTTPS.
const HTTPS: u16 = 443;
/// Where tinyproxy listens.
pub(crate) const TINYPROXY_PORT: u16 = 8888;
/// Where squid listens.
pub(crate) const SQUID_PORT: u16 = 3128;
/// Whom a proxy knows.
pub(crate) const USER: &str = "office";
/// And by what.
pub(crate) const PASSWORD: &str = "s3cret";

/// How nginx speaks to the coordinator.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Upstream {
    Http,
    Https,
}

/// What a proxy wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Auth {
    Nobody,
    Basic,
    /// Another password than it was.
    Changed,
}

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(path)
}

fn directory(network: &Network, name: &str) -> anyhow::Result<PathBuf> {
    let directory = network.lab().directory().join(name);
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

fn wait_listening(network: &Network, host: &str, port: u16, process: &Process) -> anyhow::Result<()> {
    wait_until(PATIENCE, &format!("something listens on port {port}"), || {
        anyhow::ensure!(process.is_running(), "it has ended: {}", fs::read_to_string(process.log())?);
        let connected = network
            .host(host)?
            .netns()
            .enter(|| TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), PATIENCE))?;
        Ok(connected.is_ok())
    })
}

/// Starts nginx on `pi`, with the snippet of `deploy/nginx` in a server that owns port 443.
pub(crate) fn nginx(network: &Network, upstream: Upstream) -> anyhow::Result<Process> {
    let directory = directory(network, "nginx")?;
    let at = |name: &str| directory.join(name).display().to_string();
    let host = network.host("pi")?;
    let subject = "/CN=somebody.else.example";
    let made = host.command("openssl").args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]);
    made.args(["-subj", subject, "-keyout", &at("key.pem"), "-out", &at("cert.pem")]).output()?.success()?;
    let snippet = fs::read_to_string(deploy("nginx/mesh.conf")).context("the snippet of deploy/nginx")?;
    let snippet = match upstream {
        Upstream::Http => snippet,
        Upstream::Https => snippet.replace("http://127.0.0.1:7443", "https://127.0.0.1:7443"),
    };
    fs::write(at("mesh.conf"), snippet)?;
    let config = format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {pid};\nerror_log stderr;\nevents {{ }}\nhttp {{\n\
           access_log off;\nclient_body_temp_path {temp};\nproxy_temp_path {temp};\nfastcgi_temp_path {temp};\n\
           uwsgi_temp_path {temp};\nscgi_temp_path {temp};\n\
           server {{\n listen {HTTPS} ssl;\n server_name pi.example;\n ssl_certificate {cert};\n ssl_certificate_key {key};\n\
             include {mesh};\n location / {{ return 200 'a web page'; }}\n }}\n}}\n",
        pid = at("pid"),
        temp = at("temp"),
        cert = at("cert.pem"),
        key = at("key.pem"),
        mesh = at("mesh.conf"),
    );
    fs::write(at("nginx.conf"), config)?;
    let process = host.command("nginx").args(["-p", &at(""), "-c", &at("nginx.conf")]).spawn("nginx")?;
    wait_listening(network, "pi", HTTPS, &process)?;
    Ok(process)
}

/// Starts tinyproxy on `proxy`; it lets CONNECT go to port 443 alone.
pub(crate) fn tinyproxy(network: &Network, auth: Auth) -> anyhow::Result<Process> {
    let file = directory(network, "tinyproxy")?.join("tinyproxy.conf");
    let auth = match auth {
        Auth::Nobody => String::new(),
        Auth::Basic => format!("BasicAuth {USER} {PASSWORD}\n"),
        Auth::Changed => format!("BasicAuth {USER} changed\n"),
    };
    fs::write(
        &file,
        format!("Port {TINYPROXY_PORT}\nTimeout 600\nMaxClients 50\nConnectPort {HTTPS}\n{auth}"),
    )?;
    let process =
        network.host("proxy")?.command("tinyproxy").arg("-d").arg("-c").arg(&file).spawn("tinyproxy")?;
    wait_listening(network, "proxy", TINYPROXY_PORT, &process)?;
    Ok(process)
}

/// Starts squid on `proxy`; it lets CONNECT go to port 443 alone, and asks for a password.
pub(crate) fn squid(network: &Network) -> anyhow::Result<Process> {
    let directory = directory(network, "squid")?;
    let host = network.host("proxy")?;
    let hash = host.command("openssl").args(["passwd", "-apr1", PASSWORD]).output()?.success()?.stdout;
    // Read by squid's helper, which is no longer root.
    let users = directory.join("users");
    fs::write(&users, format!("{USER}:{hash}"))?;
    let config = format!(
        "http_port {SQUID_PORT}\npid_filename none\ncache_log /dev/null\naccess_log none\ncache deny all\n\
         shutdown_lifetime 0 seconds\nvisible_hostname proxy\n\
         auth_param basic program /usr/lib/squid/basic_ncsa_auth {users}\n\
         acl known proxy_auth REQUIRED\nacl https port {HTTPS}\n\
         http_access deny CONNECT !https\nhttp_access allow known\nhttp_access deny all\n",
        users = users.display()
    );
    let file = directory.join("squid.conf");
    fs::write(&file, config)?;
    let process = host.command("squid").args(["-N", "-f"]).arg(&file).spawn("squid")?;
    wait_listening(network, "proxy", SQUID_PORT, &process)?;
    Ok(process)
}

/// The address of something on the host `proxy`.
pub(crate) fn at_proxy(network: &Network, port: u16) -> anyhow::Result<SocketAddrV4> {
    Ok(SocketAddrV4::new(network.host("proxy")?.address(), port))
}
