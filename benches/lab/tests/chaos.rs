//! kill -9 of anything, at random, while everyone talks to everyone.
//!
//! The test stands in for the service manager and starts again what it killed; nothing else helps the village. After
//! each kill all ordered pairs must come back. A seed is printed; `MESH_CHAOS_SEED` repeats it, `MESH_CHAOS_KILLS` sets
//! how many kills there are.

use std::time::{Duration, Instant};

use mesh_lab::mesh::Daemon;
use mesh_lab::told::{Told, told};
use mesh_lab::traffic::Echo;
use mesh_lab::{Lab, Village};
use nix::sys::signal::Signal;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng as _};

/// Kills unless told otherwise: what `make test` has the time for.
const KILLS: u32 = 25;
/// How long the village may take to be whole again after a kill.
const RECOVERY: Duration = Duration::from_secs(20);
/// Between the requests of a pair.
const INTERVAL: Duration = Duration::from_millis(200);
/// The longest that a killed daemon stays away; the units restart after one second.
const LONGEST_ABSENCE_MS: u64 = 1000;
/// The longest that the village is left alone between kills.
const LONGEST_PEACE_MS: u64 = 500;
/// What daemons say, as they should, when others die around them.
const EXPECTED: [&str; 1] = ["the coordinator is not reached"];

#[test]
fn every_pair_comes_back_after_every_kill() {
    let Told { amount, seed } = told("MESH_CHAOS_KILLS", "MESH_CHAOS_SEED").unwrap();
    let kills = amount.map_or(KILLS, |kills| u32::try_from(kills).unwrap());
    let mut random = ChaCha8Rng::seed_from_u64(seed);

    let lab = Lab::new("chaos").unwrap();
    let village = Village::prepare(&lab).unwrap();
    let before = village.before().unwrap();
    village.mesh().start().unwrap();
    let echo = Echo::all(&village, INTERVAL).unwrap();
    echo.wait_all(Instant::now(), RECOVERY).unwrap();

    let mut recoveries = Vec::new();
    for kill in 1..=kills {
        let victims = draw(&mut random, &village.daemons());
        let names: Vec<&str> = victims.iter().map(|victim| victim.name()).collect();
        for victim in &victims {
            victim.kill(Signal::SIGKILL).unwrap();
        }
        sleep(&mut random, LONGEST_ABSENCE_MS);
        for victim in &victims {
            victim.start().unwrap();
        }
        let restarted = Instant::now();
        match echo.wait_all(restarted, RECOVERY) {
            Ok(after) => recoveries.push((after, kill)),
            Err(error) => panic!("kill {kill} of {kills}, {}, seed {seed}: {error:#}", names.join(" and ")),
        }
        println!("kill {kill}: {} back after {:?}", names.join(" and "), restarted.elapsed());
        sleep(&mut random, LONGEST_PEACE_MS);
        let dead: Vec<_> = village.daemons().into_iter().filter(|daemon| !daemon.is_running()).collect();
        assert!(dead.is_empty(), "kill {kill}, seed {seed}: ended by themselves: {dead:?}");
    }
    drop(echo);
    recoveries.sort();
    if let [.., (slowest, kill)] = recoveries.as_slice() {
        let (median, _) = recoveries[recoveries.len() / 2];
        println!("{kills} kills: back after {median:?} in the median, {slowest:?} at worst (kill {kill})");
    }
    village.stop().unwrap();
    assert_eq!(village.leftovers(&before).unwrap(), Vec::<String>::new(), "seed {seed}");
    village.check_logs(&EXPECTED).unwrap();
}

/// Mostly one victim; now and then two at the same moment.
fn draw<'a>(random: &mut ChaCha8Rng, daemons: &[&'a Daemon]) -> Vec<&'a Daemon> {
    let count = if random.next_u32().is_multiple_of(5) { 2 } else { 1 };
    let mut left = daemons.to_vec();
    (0..count).map(|_| left.swap_remove(below(random, left.len() as u64) as usize)).collect()
}

fn sleep(random: &mut ChaCha8Rng, longest_ms: u64) {
    std::thread::sleep(Duration::from_millis(below(random, longest_ms)));
}

/// A number from 0 to `end`, without it.
fn below(random: &mut ChaCha8Rng, end: u64) -> u64 {
    random.next_u64() % end
}
