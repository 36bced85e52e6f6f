use super::*;

const ROUTER: Router =
    Router { gateway: Ipv4Addr::new(192, 168, 1, 1), local: Ipv4Addr::new(192, 168, 1, 10) };
const PORT: u16 = 51820;

fn external(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 1), port)
}

fn granted(port: u16, lifetime: u64, epoch: u32) -> Result<Grant, Failure> {
    Ok(Grant { external: external(port), lifetime: Duration::from_secs(lifetime), epoch: Some(epoch) })
}

fn map(protocol: Protocol, port: u16) -> Ask {
    Ask::Map { protocol, port, leftover: None }
}

fn asks(policy: &mut Policy) -> Vec<Ask> {
    std::iter::from_fn(|| policy.poll_ask()).collect()
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// A policy that has asked everything once.
fn probing(now: Instant) -> Policy {
    let mut policy = Policy::new(PORT, None);
    assert_eq!(policy.set_router(Some(ROUTER), now), Restart::Yes);
    assert_eq!(asks(&mut policy), Protocol::ALL.map(Ask::Probe));
    policy
}

/// A policy that holds a mapping by PCP since `now`, when the router's epoch was 1000.
fn holding(now: Instant) -> Policy {
    let mut policy = probing(now);
    policy.handle_probed(Protocol::Pcp, Ok(()), now);
    assert_eq!(asks(&mut policy), [map(Protocol::Pcp, PORT)]);
    policy.handle_mapped(granted(PORT, 7200, 1000), now);
    assert_eq!(policy.mapped(), Some(Mapped { protocol: Protocol::Pcp, external: external(PORT) }));
    policy
}

#[test]
fn the_best_that_answers_is_asked() {
    let now = Instant::now();
    let mut policy = probing(now);
    policy.handle_probed(Protocol::Upnp, Ok(()), now);
    assert_eq!(asks(&mut policy), [], "better ones may still answer");
    assert_eq!(policy.poll_timeout(), Some(now + GRACE));
    policy.handle_probed(Protocol::NatPmp, Ok(()), now);
    policy.handle_probed(Protocol::Pcp, Err(Failure::Silent), now);
    assert_eq!(asks(&mut policy), [map(Protocol::NatPmp, PORT)]);
    policy.handle_mapped(Err(Failure::Refused), now);
    assert_eq!(asks(&mut policy), [map(Protocol::Upnp, PORT)], "the next best");
    policy.handle_mapped(granted(PORT, 3600, 0), now);
    assert_eq!(policy.mapped().map(|mapped| mapped.protocol), Some(Protocol::Upnp));
    assert_eq!(policy.counts(), Counts { refused: 1, garbage: 0 });
}

#[test]
fn a_better_protocol_is_not_waited_for_long() {
    let now = Instant::now();
    let mut policy = probing(now);
    policy.handle_probed(Protocol::NatPmp, Ok(()), now);
    policy.handle_timeout(now + GRACE);
    assert_eq!(asks(&mut policy), [map(Protocol::NatPmp, PORT)]);
    policy.handle_probed(Protocol::Pcp, Ok(()), now + GRACE);
    assert_eq!(asks(&mut policy), [], "one at a time");
    policy.handle_mapped(Err(Failure::Silent), now + GRACE);
    assert_eq!(asks(&mut policy), [map(Protocol::Pcp, PORT)], "it has answered by now");
}

#[test]
fn what_no_router_answers_is_asked_ever_more_rarely() {
    let mut now = Instant::now();
    let mut policy = probing(now);
    let mut pauses = Vec::new();
    for _ in 0..9 {
        for protocol in Protocol::ALL {
            policy.handle_probed(protocol, Err(Failure::Silent), now);
        }
        let next = policy.poll_timeout().unwrap();
        pauses.push((next - now).as_secs());
        now = next;
        policy.handle_timeout(now);
        assert_eq!(asks(&mut policy).len(), 3);
    }
    assert_eq!(pauses, [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]);
    assert_eq!(policy.counts(), Counts::default(), "silence is no fault");
}

#[test]
fn a_mapping_is_renewed_at_half_life_and_lives_no_longer_than_granted() {
    let start = Instant::now();
    let mut policy = probing(start);
    policy.handle_probed(Protocol::Pcp, Ok(()), start);
    asks(&mut policy);
    policy.handle_mapped(granted(PORT, 100, 1000), start);
    policy.handle_timeout(start + seconds(50));
    assert_eq!(asks(&mut policy), [map(Protocol::Pcp, PORT)]);
    policy.handle_mapped(Err(Failure::Silent), start + seconds(52));
    policy.handle_timeout(start + seconds(76));
    assert_eq!(asks(&mut policy), [map(Protocol::Pcp, PORT)], "at half of what is left");
    policy.handle_mapped(Err(Failure::Silent), start + seconds(78));
    assert!(policy.mapped().is_some());
    policy.handle_timeout(start + seconds(89));
    asks(&mut policy);
    policy.handle_timeout(start + seconds(100));
    assert_eq!(policy.mapped(), None, "its life is over while the answer is waited for");
    assert_eq!(asks(&mut policy).len(), 3, "from the beginning");
}

#[test]
fn after_a_sleep_a_mapping_is_renewed_at_once_and_is_as_old_as_it_is() {
    let now = Instant::now();
    let mut policy = holding(now);
    policy.handle_woke(seconds(1000), now + seconds(10));
    assert_eq!(asks(&mut policy), [map(Protocol::Pcp, PORT)]);
    assert!(policy.mapped().is_some(), "it lives for another hour and a half");
    policy.handle_woke(seconds(60), now + seconds(11));
    assert_eq!(asks(&mut policy), [], "it is being asked for");
    // The router's clock has seen what this one has not.
    policy.handle_mapped(Err(Failure::Silent), now + seconds(12));
    policy.handle_timeout(now + seconds(7200 - 1060));
    assert_eq!(policy.mapped(), None, "no longer than granted");

    let mut policy = holding(now);
    policy.handle_woke(seconds(1000), now + seconds(10));
    asks(&mut policy);
    policy.handle_mapped(granted(PORT, 7200, 2010), now + seconds(10));
    assert_eq!(asks(&mut policy), [], "no reboot is seen in that");
    policy.handle_timeout(now + seconds(10 + 3600));
    assert_eq!(asks(&mut policy).len(), 1);
}

#[test]
fn a_mapping_whose_life_ended_in_a_sleep_is_not_offered_until_it_is_granted_again() {
    let now = Instant::now();
    let mut policy = holding(now);
    policy.handle_woke(seconds(8 * 3600), now + seconds(1));
    assert_eq!(policy.mapped(), None);
    assert_eq!(asks(&mut policy), Protocol::ALL.map(Ask::Probe), "whatever router there is now");
    policy.handle_probed(Protocol::Pcp, Ok(()), now + seconds(1));
    assert_eq!(asks(&mut policy), [map(Protocol::Pcp, PORT)]);
    policy.handle_mapped(granted(PORT, 7200, 5), now + seconds(1));
    assert!(policy.mapped().is_some());
}

#[test]
fn a_router_that_did_not_answer_is_asked_again_on_wake() {
    let now = Instant::now();
    let mut policy = probing(now);
    for protocol in Protocol::ALL {
        policy.handle_probed(protocol, Err(Failure::Silent), now);
    }
    policy.handle_woke(seconds(5), now + seconds(1));
    assert_eq!(asks(&mut policy), Protocol::ALL.map(Ask::Probe));
}

#[test]
fn what_the_router_grants_is_taken_if_it_can_be() {
    let now = Instant::now();
    let mut policy = holding(now);
    policy.handle_timeout(now + seconds(3600));
    asks(&mut policy);
    policy.handle_mapped(granted(7, 10 * 24 * 3600, 4600), now + seconds(3600));
    assert_eq!(policy.mapped().map(|mapped| mapped.external.port()), Some(7), "another port");
    let lease = match policy.phase {
        Phase::Held(lease) => lease,
        other => panic!("{other:?}"),
    };
    assert_eq!(lease.expires_at, now + seconds(3600) + MAX_LIFETIME);

    for (address, port, lifetime) in
        [("0.0.0.0", 1, 60), ("224.0.0.1", 1, 60), ("203.0.113.1", 0, 60), ("203.0.113.1", 1, 0)]
    {
        let mut policy = probing(now);
        policy.handle_probed(Protocol::Pcp, Ok(()), now);
        let external = SocketAddrV4::new(address.parse().unwrap(), port);
        policy.handle_mapped(Ok(Grant { external, lifetime: seconds(lifetime), epoch: None }), now);
        assert_eq!(policy.mapped(), None, "{external} for {lifetime} s");
        assert_eq!(policy.counts().garbage, 1);
    }
}

#[test]
fn a_router_that_has_lost_its_mappings_is_asked_again_at_once() {
    let start = Instant::now();
    let check = |policy: &mut Policy, now| {
        policy.handle_timeout(now);
        let asked = asks(policy);
        assert!(matches!(asked[..], [Ask::Check(_)]), "{asked:?}");
    };
    let mut policy = holding(start);
    let now = start + CHECK_INTERVAL;
    check(&mut policy, now);
    policy.handle_checked(Ok(Standing { epoch: Some(1020), address: None }), now);
    assert_eq!(asks(&mut policy), []);
    let now = now + CHECK_INTERVAL;
    check(&mut policy, now);
    policy.handle_checked(Ok(Standing { epoch: Some(3), address: None }), now);
    assert_eq!(asks(&mut policy), [map(Protocol::Pcp, PORT)], "its epoch went back");

    let now = start + CHECK_INTERVAL;
    for gone in
        [Err(Failure::Gone), Ok(Standing { epoch: None, address: Some(Ipv4Addr::new(203, 0, 113, 2)) })]
    {
        let mut policy = holding(start);
        check(&mut policy, now);
        policy.handle_checked(gone, now);
        assert_eq!(asks(&mut policy), [map(Protocol::Pcp, PORT)], "{gone:?}");
    }
}

#[test]
fn announcements_are_believed_once_in_a_while() {
    let now = Instant::now();
    let mut policy = holding(now);
    policy.handle_announced(now + seconds(1));
    assert_eq!(asks(&mut policy), [map(Protocol::Pcp, PORT)]);
    policy.handle_mapped(granted(PORT, 7200, 1), now + seconds(1));
    for _ in 0..100 {
        policy.handle_announced(now + seconds(2));
    }
    assert_eq!(asks(&mut policy), [], "not at every forged one");
}

#[test]
fn another_network_starts_all_over() {
    let now = Instant::now();
    let mut policy = holding(now);
    assert_eq!(policy.set_router(Some(ROUTER), now), Restart::No);
    assert_eq!(
        asks(&mut policy),
        [map(Protocol::Pcp, PORT)],
        "it may be another router with the same address"
    );
    let other = Router { gateway: Ipv4Addr::new(10, 0, 0, 1), local: Ipv4Addr::new(10, 0, 0, 9) };
    assert_eq!(policy.set_router(Some(other), now), Restart::Yes);
    assert_eq!(policy.mapped(), None);
    assert_eq!(asks(&mut policy).len(), 3);
    policy.handle_mapped(granted(PORT, 60, 0), now);
    assert_eq!(policy.mapped(), None, "an answer to nothing");
    assert_eq!(policy.set_router(None, now), Restart::Yes);
    assert_eq!((policy.poll_timeout(), asks(&mut policy)), (None, vec![]));
}

#[test]
fn what_an_earlier_run_has_left_is_taken_over_or_removed() {
    let now = Instant::now();
    let left =
        Held { protocol: Protocol::Pcp, router: ROUTER.gateway, internal_port: PORT, external: external(7) };
    let asked = |leftover: Held, found: Protocol| {
        let mut policy = Policy::new(PORT, Some(leftover));
        policy.set_router(Some(ROUTER), now);
        asks(&mut policy);
        for protocol in Protocol::ALL {
            let answer = if protocol == found { Ok(()) } else { Err(Failure::Silent) };
            policy.handle_probed(protocol, answer, now);
        }
        asks(&mut policy)
    };
    assert_eq!(asked(left, Protocol::Pcp), [map(Protocol::Pcp, 7)]);
    let ask = Ask::Map { protocol: Protocol::Upnp, port: 7, leftover: Some(left) };
    assert_eq!(asked(left, Protocol::Upnp), [ask]);
    let other_port = Held { internal_port: 9, ..left };
    let ask = Ask::Map { protocol: Protocol::Pcp, port: 7, leftover: Some(other_port) };
    assert_eq!(asked(other_port, Protocol::Pcp), [ask]);
    let elsewhere = Held { router: Ipv4Addr::new(10, 0, 0, 1), ..left };
    assert_eq!(asked(elsewhere, Protocol::Pcp), [map(Protocol::Pcp, PORT)]);
}

#[test]
fn a_port_that_others_have_is_counted_on_from() {
    let now = Instant::now();
    let mut policy = probing(now);
    for protocol in [Protocol::Pcp, Protocol::NatPmp] {
        policy.handle_probed(protocol, Err(Failure::Silent), now);
    }
    policy.handle_probed(Protocol::Upnp, Ok(()), now);
    for count in 0..=MAX_CONFLICTS {
        assert_eq!(asks(&mut policy), [map(Protocol::Upnp, PORT + count)]);
        policy.handle_mapped(Err(Failure::Conflict), now);
    }
    assert_eq!(asks(&mut policy), []);
    assert!(matches!(policy.phase, Phase::Resting { .. }));
}
