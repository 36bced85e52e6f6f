//! Life without a coordinator: agents are killed, lose power, roam and get other addresses, and pairs that never talked
//! begin to, while it is away. Then it comes back.
//!
//! `make soak` takes an hour; `MESH_SOAK_MINUTES` sets another time, `MESH_EVENTS_SEED` repeats the events of a run.

use std::time::{Duration, Instant};

use anyhow::ensure;
use mesh_lab::Lab;
use mesh_lab::events::{Course, Event, Run};
use mesh_lab::mesh::wait_until;
use mesh_lab::told::{Told, told};
use mesh_proto::status::ConnectionState;

/// Events unless a time is told: what `make test` has the time for.
const EVENTS: u64 = 5;
/// With everyone there before the coordinator goes.
const BEFORE: Duration = Duration::from_secs(60);
/// Events between two looks at what is used, and a pause.
const CHECKPOINT: u64 = 25;
/// In which timers of idle NATs, and attempts that are ever farther apart, have their time.
const PAUSE: Duration = Duration::from_secs(45);
/// How soon a node knows that nothing answers: the longest attempt, and one more by a node that roamed meanwhile.
const TOLD: Duration = Duration::from_secs(40);
/// How soon the coordinator sees everyone again.
const SEEN: Duration = Duration::from_secs(60);

#[test]
fn agents_live_without_their_coordinator_and_it_comes_back() {
    let Told { amount: minutes, seed } = told("MESH_SOAK_MINUTES", "MESH_EVENTS_SEED").unwrap();
    let lab = Lab::new("soak").unwrap();
    let started = Instant::now();
    // At first only `country` talks, to everyone; other pairs never did.
    let mut run =
        Run::start_between(&lab, seed, Course::CoordinatorAway, |from, to| [from, to].contains(&"country"))
            .unwrap();
    if minutes.is_some() {
        std::thread::sleep(BEFORE.saturating_sub(started.elapsed()));
    }
    run.happen(Event::KillCoordinator).unwrap();
    let away = Instant::now();

    let length = minutes.map(|minutes| Duration::from_secs(60 * minutes));
    let goes_on = |events: u64, share: f64| match length {
        Some(length) => started.elapsed() < length.mul_f64(share),
        None => events < (EVENTS as f64 * share) as u64,
    };
    let mut events = 0;
    let mut live = |run: &mut Run, share: f64| {
        while goes_on(events, share) {
            run.step().unwrap_or_else(|error| panic!("event {events}, seed {seed}: {error:#}"));
            events += 1;
            if events % CHECKPOINT == 0 {
                run.checkpoint()
                    .unwrap_or_else(|error| panic!("after {events} events, seed {seed}: {error:#}"));
                std::thread::sleep(PAUSE);
            }
        }
    };
    live(&mut run, 0.4);
    let took = run.talk().unwrap_or_else(|error| panic!("new pairs, seed {seed}: {error:#}"));
    println!("pairs that never talked answer after {took:?}, {:?} without the coordinator", away.elapsed());
    live(&mut run, 1.0);

    for node in run.village().nodes() {
        // One that has just started finds out first.
        wait_until(TOLD, "a node says why it has no coordinator", || {
            Ok(node.status()?.this.coordinator.error.is_some())
        })
        .unwrap_or_else(|error| panic!("{}: {error:#}", node.name()));
        let status = node.status().unwrap();
        let coordinator = &status.this.coordinator;
        assert_ne!(coordinator.state, ConnectionState::Connected, "{} says {coordinator:?}", node.name());
        assert_eq!(
            status.this.warnings,
            Vec::<String>::new(),
            "{} takes it for trouble of its own",
            node.name()
        );
        assert!(node.is_ready(), "{} says that it is not ready", node.name());
    }
    let told = run.village().node("macbook").unwrap().meshctl(["status"]).unwrap().success().unwrap();
    println!("{}", told.stdout);

    println!("the coordinator comes back after {:?}", away.elapsed());
    run.happen(Event::StartCoordinator).unwrap();
    wait_until(SEEN, "the coordinator sees everyone", || {
        let listed = run.village().administer(["node", "list", "--json"])?.success()?.stdout;
        let nodes: serde_json::Value = serde_json::from_str(&listed)?;
        let is_online = |node: &serde_json::Value| node["online"] == true;
        ensure!(nodes.as_array().is_some_and(|nodes| nodes.iter().all(is_online)), "it says {listed}");
        Ok(true)
    })
    .unwrap();
    run.finish().unwrap();
}
