//! Random topologies under random schedules: the promises hold, over many virtual node-hours.

use std::{panic::resume_unwind, thread, time::Instant};

use crate::scenario::{Failure, Scenario, Stats};

/// Steps of one scenario.
const STEPS: u32 = 40;
/// Scenarios that are run when no seed is asked for.
const RUNS: u64 = 12;
/// Threads that share them: the Noise library's clock belongs to a thread, so each has worlds of its own.
const THREADS: u64 = 2;
/// The least that all of them have to add up to.
const MIN_NODE_HOURS: f64 = 10_000.0;

#[test]
fn random_worlds_keep_every_promise() {
    let started = Instant::now();
    let (first, runs) = match asked_for("SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (asked_for("SIM_FIRST").unwrap_or(1), asked_for("SIM_RUNS").unwrap_or(RUNS)),
    };
    let mut total = Stats::default();
    let mut failures = Vec::new();
    thread::scope(|scope| {
        let share = |thread: u64| (first..first + runs).filter(move |seed| seed % THREADS == thread);
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || run(share(thread)))).collect();
        for thread in threads {
            let (stats, failed) = thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            total.merge(&stats);
            failures.extend(failed);
        }
    });
    println!("seeds {first} to {}, {:.1?} of real time: {total}", first + runs - 1, started.elapsed());
    if let Some(failure) = failures.first() {
        panic!("{} of {runs} seeds failed, the first with\n{failure:?}", failures.len());
    }
    let enough = runs < RUNS || total.node_hours() >= MIN_NODE_HOURS;
    assert!(enough, "only {:.0} virtual node-hours", total.node_hours());
}

/// Runs some seeds; goes on after one that fails.
fn run(seeds: impl Iterator<Item = u64>) -> (Stats, Vec<Failure>) {
    let mut total = Stats::default();
    let mut failures = Vec::new();
    for seed in seeds {
        match Scenario::draw(seed).run(STEPS) {
            Ok((stats, _)) => total.merge(&stats),
            Err(failure) => {
                println!("seed {seed}: {}", failure.headline);
                failures.push(failure);
            }
        }
    }
    (total, failures)
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| Scenario::draw(seed).run(6).unwrap().1;
    let [first, second, other] = [7, 7, 8].map(run);
    assert_eq!(first, second);
    assert_ne!(first, other);
}

fn asked_for(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text}")))
}
