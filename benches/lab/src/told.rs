//! What random tests are told through the environment: how much they do, and from which seed.

use anyhow::Context as _;
use rand_core::RngCore as _;

/// The seed of the short runs, which are a part of `make test`: what they meet is the same each time.
const SEED_OF_SHORT_RUNS: u64 = 7;

/// How much a random test does, and what it draws from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// How much (kills, events, minutes), unless it is a short run.
    pub amount: Option<u64>,
    /// What it draws from: a long run meets something else each time, and prints this.
    pub seed: u64,
}

/// Reads both from the variables of these names.
///
/// # Errors
/// One of them is set, and is no number.
pub fn told(amount: &str, seed: &str) -> anyhow::Result<Told> {
    let number = |variable: &str| match std::env::var(variable) {
        Ok(text) => text.parse().map(Some).with_context(|| format!("{variable}={text} is no number")),
        Err(_) => Ok(None),
    };
    let of_run = |amount: Option<u64>| match amount {
        Some(_) => rand_core::OsRng.next_u64(),
        None => SEED_OF_SHORT_RUNS,
    };
    let (told_amount, told_seed) = (number(amount)?, number(seed)?);
    let told = Told { amount: told_amount, seed: told_seed.unwrap_or_else(|| of_run(told_amount)) };
    println!(
        "{seed}={} {amount}={}",
        told.seed,
        told_amount.map_or("(a short run)".into(), |n| n.to_string())
    );
    Ok(told)
}
