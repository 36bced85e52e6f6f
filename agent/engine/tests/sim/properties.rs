//! Random topologies under random schedules: the promises hold, over many virtual node-hours.

use std::{
    panic::resume_unwind,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use crate::scenario::{Failure, Scenario, Stats};

/// Steps of one scenario.
const STEPS: u32 = 40;
/// Scenarios that are run when nothing else is asked for.
const RUNS: u64 = 12;
/// Threads that share them: the Noise library's clock belongs to a thread, so each has worlds of its own.
const THREADS: u64 = 2;
/// The least that all of them have to add up to.
const MIN_NODE_HOURS: f64 = 10_000.0;
/// In a long run it is said this often how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(60);

/// How much is run.
#[derive(Debug, Clone, Copy)]
enum Until {
    /// So many seeds.
    Runs(u64),
    /// As many seeds as it takes to get so many virtual node-hours.
    Hours(u64),
}

/// What all threads have done.
struct Progress {
    next: u64,
    total: Stats,
    failures: Vec<Failure>,
    told: Instant,
}

#[test]
fn random_worlds_keep_every_promise() {
    let started = Instant::now();
    let first = asked_for("SIM_SEED").or_else(|| asked_for("SIM_FIRST")).unwrap_or(1);
    let until = match (asked_for("SIM_SEED"), asked_for("SIM_RUNS"), asked_for("SIM_HOURS")) {
        (Some(_), ..) => Until::Runs(1),
        (None, Some(runs), _) => Until::Runs(runs),
        (None, None, Some(hours)) => Until::Hours(hours),
        (None, None, None) => Until::Runs(RUNS),
    };
    let progress = Progress { next: first, total: Stats::default(), failures: Vec::new(), told: started };
    let progress = Mutex::new(progress);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| run(first, until, &progress))).collect();
        for thread in threads {
            thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        }
    });
    let Progress { next, total, failures, .. } = progress.into_inner().unwrap();
    let runs = next - first;
    println!("seeds {first} to {}, {:.1?} of real time: {total}", next - 1, started.elapsed());
    if let Some(failure) = failures.first() {
        panic!("{} of {runs} seeds failed, the first with\n{failure:?}", failures.len());
    }
    let enough = match until {
        Until::Runs(runs) => runs < RUNS || total.node_hours() >= MIN_NODE_HOURS,
        Until::Hours(hours) => total.node_hours() >= hours as f64,
    };
    assert!(enough, "only {:.0} virtual node-hours", total.node_hours());
}

/// Runs one seed after the other; goes on after one that fails.
fn run(first: u64, until: Until, progress: &Mutex<Progress>) {
    loop {
        let seed = {
            let mut progress = progress.lock().expect("no thread panics while it holds the lock");
            let is_done = match until {
                Until::Runs(runs) => progress.next >= first + runs,
                Until::Hours(hours) => progress.total.node_hours() >= hours as f64,
            };
            if is_done {
                return;
            }
            progress.next += 1;
            progress.next - 1
        };
        let outcome = Scenario::draw(seed).run(STEPS);
        let mut progress = progress.lock().expect("no thread panics while it holds the lock");
        match outcome {
            Ok((stats, _)) => progress.total.merge(&stats),
            Err(failure) => {
                println!("seed {seed}: {}", failure.headline);
                progress.failures.push(failure);
            }
        }
        if progress.told.elapsed() >= PROGRESS_INTERVAL {
            progress.told = Instant::now();
            println!("seed {seed}: {:.0} virtual node-hours so far", progress.total.node_hours());
        }
    }
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
