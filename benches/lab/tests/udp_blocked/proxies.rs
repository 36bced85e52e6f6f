//! Through what companies put in the way: nginx before the coordinator, and HTTP proxies on the way to it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_lab::mesh::wait_until;
use mesh_lab::nat::Egress;
use mesh_lab::topology::Site;
use mesh_lab::{Lab, Network};
use nix::sys::signal::Signal;

use super::rig::{By, PATIENCE, build, prepare, start, time_to_first_reply, topology, wait_carried};
use super::servers::{
    Auth, PASSWORD, SQUID_PORT, TINYPROXY_PORT, USER, Upstream, at_proxy, nginx, squid, tinyproxy,
};

/// A network in which `office` has nothing but the host `proxy`.
fn behind_proxy(lab: &Lab, port: u16) -> anyhow::Result<Arc<Network>> {
    let network = build(lab, topology(Egress::Open, Egress::Open).site(Site::public("proxy")))?;
    network.set_egress("company", Egress::OnlyProxy(at_proxy(&network, port)?))?;
    Ok(network)
}

#[test]
fn a_web_server_on_port_443_hands_on_to_the_coordinator() {
    for upstream in [Upstream::Http, Upstream::Https] {
        let lab = Lab::new("nginx").unwrap();
        let network = build(&lab, topology(Egress::OnlyTcp443, Egress::Open)).unwrap();
        let _nginx = nginx(&network, upstream).unwrap();
        let mesh = start(&network, &[]).unwrap();
        let status = wait_carried(&mesh, "office", By::WebSocket).unwrap();
        assert!(status.this.coordinator.address.unwrap().ends_with(":443"));
        wait_carried(&mesh, "home", By::Udp).unwrap();
        for _ in 0..3 {
            mesh.node("office").unwrap().kill(Signal::SIGKILL).unwrap();
            let took = time_to_first_reply(&mesh, "office", "home").unwrap();
            println!("through nginx ({upstream:?}), cold start to first reply: {took:?}");
        }
        std::fs::remove_file(mesh.node("office").unwrap().state_dir().join("networks.json")).unwrap();
        mesh.node("office").unwrap().kill(Signal::SIGKILL).unwrap();
        let took = time_to_first_reply(&mesh, "office", "home").unwrap();
        println!("through nginx ({upstream:?}), in a network that is not known: {took:?}");
    }
}

#[test]
fn a_proxy_with_a_password_leads_to_the_coordinator() {
    for (name, port) in [("squid", SQUID_PORT), ("tinyproxy", TINYPROXY_PORT)] {
        let lab = Lab::new(name).unwrap();
        let network = behind_proxy(&lab, port).unwrap();
        let _nginx = nginx(&network, Upstream::Http).unwrap();
        let running = match port {
            SQUID_PORT => squid(&network),
            _ => tinyproxy(&network, Auth::Basic),
        }
        .unwrap();
        let proxy = format!("http://{USER}:{PASSWORD}@{}", at_proxy(&network, port).unwrap());
        let mesh = prepare(&network, &["--proxy", &proxy]).unwrap();
        mesh.start_coordinator().unwrap();
        let line = mesh.token(&["--uses", "9"]).unwrap();

        let office = mesh.node("office").unwrap();
        if name == "tinyproxy" {
            // Without a password, and with a wrong one.
            let place = at_proxy(&network, port).unwrap();
            let refused = office.try_join(&format!("{line} --proxy http://{place}")).unwrap();
            assert!(refused.stderr.contains("asks for a user and a password (407)"), "{}", refused.stderr);
            let refused = office.try_join(&format!("{line} --proxy http://{USER}:wrong@{place}")).unwrap();
            assert!(
                refused.stderr.contains("does not accept the user and password (40"),
                "{}",
                refused.stderr
            );
            assert!(!refused.stderr.contains("wrong@"), "{}", refused.stderr);
        }
        office.join(&format!("{line} --proxy {proxy}")).unwrap();
        mesh.node("home").unwrap().join(&line).unwrap();
        for node in mesh.nodes() {
            node.start().unwrap();
        }
        mesh.wait_connected(PATIENCE).unwrap();
        wait_carried(&mesh, "office", By::WebSocket).unwrap();
        for _ in 0..3 {
            office.kill(Signal::SIGKILL).unwrap();
            let took = time_to_first_reply(&mesh, "office", "home").unwrap();
            println!("through {name} and nginx, cold start to first reply: {took:?}");
        }
        if name == "tinyproxy" {
            // Somebody changes the password: what the proxy says is in the status.
            drop(running);
            let _changed = tinyproxy(&network, Auth::Changed).unwrap();
            wait_until(PATIENCE, "the status says what the proxy refuses", || {
                let error = office.status()?.this.coordinator.error.unwrap_or_default();
                anyhow::ensure!(error.contains("does not accept the user and password"), "it says {error}");
                Ok(true)
            })
            .unwrap();
        }
        assert!(!office.agent().log().unwrap().contains(PASSWORD), "the log shows the password");
    }
}

#[test]
fn what_a_proxy_refuses_is_said_at_join() {
    let lab = Lab::new("proxy-refuses").unwrap();
    let network = behind_proxy(&lab, TINYPROXY_PORT).unwrap();
    let _proxy = tinyproxy(&network, Auth::Nobody).unwrap();
    let mesh = prepare(&network, &[]).unwrap();
    mesh.start_coordinator().unwrap();
    let line = mesh.token(&["--uses", "9"]).unwrap();
    let office = mesh.node("office").unwrap();
    let place = at_proxy(&network, TINYPROXY_PORT).unwrap();

    // Port 7443 alone is asked for, which this proxy does not allow. The proxy comes from the environment.
    let url = "wss://pi.example:7443/mesh";
    let words: Vec<_> = line.split_whitespace().skip(1).map(str::to_owned).collect();
    let join = |proxy: String| {
        let command = office.agent_command().args(&words).args(["--name", "office", "--websocket-url", url]);
        command.arg("--state-dir").arg(office.state_dir()).env("HTTPS_PROXY", proxy)
    };
    let started = Instant::now();
    let refused = join(format!("http://{place}")).timeout(Duration::from_secs(60)).output().unwrap();
    // It does not become true by asking for half a minute; UDP has its time, and the machine may be busy.
    assert!(started.elapsed() < Duration::from_secs(15), "it took {:?}", started.elapsed());
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        refused.stderr.contains("the proxy forbids the way to pi.example:7443 (403)"),
        "{}",
        refused.stderr
    );

    // A sign-in page, sent with 200 in answer to CONNECT.
    let page = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 13\r\n\r\n<html></html>";
    let listener =
        network.host("proxy").unwrap().netns().enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)));
    let listener = listener.unwrap().unwrap();
    network.set_egress("company", Egress::OnlyProxy(at_proxy(&network, 8080).unwrap())).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 1000]);
            let _ = stream.write_all(page.as_bytes());
        }
    });
    let place = at_proxy(&network, 8080).unwrap();
    let refused = join(format!("http://{place}")).timeout(Duration::from_secs(60)).output().unwrap();
    assert!(refused.stderr.contains("a web page of its own"), "{}", refused.stderr);
}
