//! Global IPv6 addresses on both sides, each behind a filter that lets in answers only.

use std::sync::Arc;
use std::time::Duration;

use mesh_lab::mesh::wait_until;
use mesh_lab::topology::Ipv6;
use mesh_lab::{Filtering, Lab, Mapping, Nat, Network, Site, Topology};
use mesh_proto::candidate::CandidateKind;

use crate::rig::{COORDINATOR, LATENCY, PATIENCE, over_ipv6, prepare, wait_direct};

/// Two sites with IPv6 behind a filter and these NATs for IPv4, and a coordinator that has IPv4 only: nobody tells the
/// nodes what their IPv6 addresses look like from outside.
fn build(lab: &Lab, nats: [Nat; 2]) -> anyhow::Result<Arc<Network>> {
    let [a, b] = nats;
    let site = |name: &str, host: &str, nat| {
        Site::behind(name, nat).host(host).latency(LATENCY).ipv6(Ipv6::Filtered)
    };
    let topology = Topology::new()
        .site(Site::public(COORDINATOR).latency(LATENCY))
        .site(site("near", "a", a))
        .site(site("far", "b", b));
    Ok(Arc::new(lab.build(topology)?))
}

#[test]
fn filters_on_both_sides_let_both_sides_in_whatever_the_nats_are() {
    let hard = || Nat::new(Mapping::Apdm, Filtering::Apdf);
    let easy = || Nat::new(Mapping::Eim, Filtering::Eif);
    for nats in [[hard(), hard()], [hard(), easy()], [easy(), easy()]] {
        let what = format!("{} with {}", nats[0].kind, nats[1].kind);
        let lab = Lab::new("v6").unwrap();
        let network = build(&lab, nats).unwrap();
        let [a, b] = ["a", "b"].map(|name| network.host(name).unwrap());
        assert!(a.ping(b.address_v6().unwrap()).is_err(), "the filter lets nobody in who was not asked");
        let mesh = prepare(&network, &network.host(COORDINATOR).unwrap().address().to_string(), &[]).unwrap();
        mesh.start().unwrap();
        let (_, took) = wait_direct(&mesh, over_ipv6).unwrap_or_else(|error| panic!("{what}: {error:#}"));
        println!("{what}: direct over IPv6 after {took:?}");
        mesh.check_logs(&[]).unwrap();
    }
}

/// What a host really has: a stable address, a temporary one that it sends from, one that has had its day, and a unique
/// local one.
#[test]
fn a_host_with_temporary_addresses_is_reached_through_its_filter() {
    let lab = Lab::new("v6tmp").unwrap();
    let hard = || Nat::new(Mapping::Apdm, Filtering::Apdf);
    let network = build(&lab, [hard(), hard()]).unwrap();
    let a = network.host("a").unwrap();
    let stable = a.address_v6().unwrap();
    let old = std::net::Ipv6Addr::from_bits(stable.to_bits() + 0xdead);
    a.netns().sysctl(&[("net.ipv6.conf.eth0.use_tempaddr", "2")]).unwrap();
    a.netns()
        .ip(&format!(
            "addr change {stable}/64 dev eth0 nodad mngtmpaddr valid_lft 7200 preferred_lft 3600\n\
             addr add {old}/64 dev eth0 nodad valid_lft 7200 preferred_lft 0\naddr add fd00:1::5/64 dev eth0 nodad\n"
        ))
        .unwrap();
    let source = || -> anyhow::Result<String> {
        let route =
            a.command("ip").args(["-6", "route", "get", "2001:503:ba3e::2:30"]).output()?.success()?;
        let from = route.stdout.split_whitespace().skip_while(|word| *word != "src").nth(1);
        Ok(from.unwrap_or_default().to_owned())
    };
    wait_until(Duration::from_secs(5), "the host sends from a temporary address", || {
        Ok(![stable.to_string(), String::new()].contains(&source()?))
    })
    .unwrap();
    let temporary: std::net::IpAddr = source().unwrap().parse().unwrap();

    let mesh = prepare(&network, &network.host(COORDINATOR).unwrap().address().to_string(), &[]).unwrap();
    mesh.start().unwrap();
    let (paths, took) = wait_direct(&mesh, over_ipv6).unwrap();
    println!("direct over IPv6 after {took:?}");
    assert_eq!(paths[1].address.map(|address| address.ip()), Some(temporary), "that is where it sends from");
    let candidates = mesh.node("a").unwrap().status().unwrap().this.candidates;
    let hosts: Vec<_> = candidates
        .iter()
        .filter(|candidate| candidate.kind == CandidateKind::Host)
        .map(|candidate| candidate.address.ip())
        .collect();
    assert!(hosts.contains(&temporary) && hosts.contains(&stable.into()), "{hosts:?}");
    assert!(hosts.contains(&"fd00:1::5".parse().unwrap()), "{hosts:?}");
    assert!(!hosts.contains(&old.into()), "{hosts:?}");
    wait_until(PATIENCE, "the pair answers", || Ok(mesh.ping("b", "a").is_ok())).unwrap();
    mesh.check_logs(&[]).unwrap();
}
