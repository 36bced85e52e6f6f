//! The one source of chance in a simulation.

use std::{ops::Range, time::Duration};

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// Draws everything that is random, from a seed.
#[derive(Debug)]
pub(crate) struct Rng(ChaCha8Rng);

impl Rng {
    /// Starts from a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Splits off a source of its own, so that what it draws does not shift what others draw.
    pub(crate) fn fork(&mut self) -> Self {
        Self::new(self.0.next_u64())
    }

    /// Draws a number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "a range is not empty");
        self.0.next_u64() % bound
    }

    /// Draws a number of a range.
    pub(crate) fn range(&mut self, range: Range<u64>) -> u64 {
        range.start + self.below(range.end - range.start)
    }

    /// Draws an index into something of this length.
    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("an index fits")
    }

    /// Draws an element.
    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }

    /// Draws whether something happens that happens `per_mille` times in 1000.
    pub(crate) fn chance(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.below(1000) < u64::from(per_mille)
    }

    /// Draws a duration of a range.
    pub(crate) fn duration(&mut self, range: Range<Duration>) -> Duration {
        let nanos =
            |d: Duration| u64::try_from(d.as_nanos()).expect("a simulation is shorter than 584 years");
        Duration::from_nanos(self.range(nanos(range.start)..nanos(range.end)))
    }

    /// Draws bytes.
    pub(crate) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.0.fill_bytes(&mut out);
        out
    }
}
