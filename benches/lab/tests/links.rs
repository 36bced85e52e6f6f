//! Lines delay, lose and shape as they are told.

use std::time::Duration;

use mesh_lab::linksim::Line;
use mesh_lab::topology::Ipv6;
use mesh_lab::{Filtering, Impairment, Lab, Loss, Mapping, Nat, Rate, Site, Topology};

const MS: Duration = Duration::from_millis(1);

/// Two public hosts; the line of `far` is given.
fn pair(lab: &Lab, line: Impairment) -> anyhow::Result<mesh_lab::Network> {
    let far = Site::public("far").impaired(line).ipv6(Ipv6::Open);
    lab.build(Topology::new().seed(1).site(Site::public("near").ipv6(Ipv6::Open)).site(far))
}

#[test]
fn delay_is_exact_and_the_same_for_both_families() {
    let lab = Lab::new("delay").unwrap();
    let network = pair(&lab, Impairment::delay(20 * MS)).unwrap();
    let (near, far) = (network.host("near").unwrap(), network.host("far").unwrap());
    near.ping(far.address()).unwrap(); // the first one opens caches
    for round_trip in [
        near.ping_many(far.address(), 5).unwrap().median().unwrap(),
        near.ping_many(far.address_v6().unwrap(), 5).unwrap().median().unwrap(),
    ] {
        // 40 ms, and what two kernels and a shared processor add.
        assert!((40 * MS..43 * MS).contains(&round_trip), "{round_trip:?}");
    }
}

#[test]
fn loss_has_its_mean_on_the_wire() {
    const PACKETS: usize = 2000;
    let lab = Lab::new("loss").unwrap();
    let network = pair(&lab, Impairment::default()).unwrap();
    let (near, far) = (network.host("near").unwrap(), network.host("far").unwrap());
    for loss in [Loss::Uniform(0.1), Loss::bursty(0.1, 5.0)] {
        let down = Impairment::default().loss(loss);
        network.set_line("far", Line { up: Impairment::default(), down }).unwrap();
        let before = network.stats("far").unwrap();
        flood(near, far, PACKETS).unwrap();
        let after = network.stats("far").unwrap();
        let lost = after.lost - before.lost;
        assert_eq!((after.received - before.received + lost) as usize, PACKETS);
        assert!((120..290).contains(&lost), "{loss:?}: {lost} of {PACKETS}");
    }
}

#[test]
fn rate_is_kept_and_the_queue_is_bounded() {
    let lab = Lab::new("rate").unwrap();
    // 4 Mbit/s and 50 ms of queue: of a burst of 100 packets of 1000 bytes, some 26 pass.
    let network = pair(&lab, Impairment::default().rate(Rate::mbit(4))).unwrap();
    let (near, far) = (network.host("near").unwrap(), network.host("far").unwrap());
    flood(near, far, 100).unwrap();
    let stats = network.stats("far").unwrap();
    assert!((24..60).contains(&stats.received), "{stats:?}");
    assert_eq!(stats.received + stats.queue_full, 100);
}

#[test]
fn cuts_are_felt_and_mended() {
    let lab = Lab::new("cut").unwrap();
    let home = Site::behind("home", Nat::new(Mapping::Eim, Filtering::Apdf)).host("pc");
    let network = lab.build(Topology::new().site(home).site(Site::public("server"))).unwrap();
    let (pc, server) = (network.host("pc").unwrap(), network.host("server").unwrap());
    pc.ping(server.address()).unwrap();
    network.set_connected("home", false).unwrap();
    assert!(pc.ping(server.address()).is_err());
    network.set_connected("home", true).unwrap();
    network.set_pair_connected("home", "server", false).unwrap();
    assert!(pc.ping(server.address()).is_err());
    pc.ping(network.internet().address()).unwrap();
    network.set_pair_connected("server", "home", true).unwrap();
    pc.ping(server.address()).unwrap();
}

/// Sends packets of 1000 bytes (with headers) as fast as the receiver takes them, and waits until the last is through.
fn flood(from: &mesh_lab::Host, to: &mesh_lab::Host, packets: usize) -> anyhow::Result<()> {
    use mesh_lab::nat::probe::socket_in;
    use std::net::{Ipv4Addr, SocketAddrV4};
    let sender = socket_in(from.netns(), SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))?;
    let target = SocketAddrV4::new(to.address(), 9);
    for batch in 0..packets.div_ceil(50) {
        for _ in 0..50.min(packets - batch * 50) {
            sender.send_to(&[0; 972], target)?;
        }
        // The device's queue holds 500 packets; the simulator reads while this thread sleeps.
        std::thread::sleep(MS);
    }
    std::thread::sleep(200 * MS);
    Ok(())
}
