//! One direction of one line, as a pure function of time.
//!
//! A packet first passes the bottleneck (a token bucket of one packet with a bounded queue, kept as the time at
//! which the line is free again), then chance, then the delay. Times are nanoseconds on the simulator's clock.

use std::time::Duration;

use rand_core::RngCore;
use serde::{Deserialize, Serialize};

/// What a direction of a line does to packets. The default is a perfect line.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Impairment {
    /// One-way delay.
    pub delay: Duration,
    /// The delay is spread evenly over `delay - jitter ..= delay + jitter`.
    pub jitter: Duration,
    /// Which packets are lost.
    pub loss: Loss,
    /// The bottleneck, if there is one.
    pub rate: Option<Rate>,
    /// Whether jitter may change the order of packets.
    pub order: Order,
}

impl Impairment {
    /// Nothing but a delay.
    pub fn delay(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }

    /// Adds jitter.
    #[must_use]
    pub fn jitter(self, jitter: Duration) -> Self {
        Self { jitter, ..self }
    }

    /// Sets which packets are lost.
    #[must_use]
    pub fn loss(self, loss: Loss) -> Self {
        Self { loss, ..self }
    }

    /// Sets the bottleneck.
    #[must_use]
    pub fn rate(self, rate: Rate) -> Self {
        Self { rate: Some(rate), ..self }
    }

    /// Sets whether jitter may change the order of packets.
    #[must_use]
    pub fn order(self, order: Order) -> Self {
        Self { order, ..self }
    }
}

/// Which packets a line loses.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub enum Loss {
    /// None.
    #[default]
    None,
    /// Each with this probability, independently.
    Uniform(f64),
    /// In bursts, by the model of Gilbert and Elliott: a good and a bad state, left with a probability at each packet.
    GilbertElliott {
        /// Probability of going from good to bad.
        to_bad: f64,
        /// Probability of going from bad to good.
        to_good: f64,
        /// Loss in the good state.
        good: f64,
        /// Loss in the bad state.
        bad: f64,
    },
}

impl Loss {
    /// Bursts of `burst` packets on average in which all are lost, so often that the mean loss is `mean`.
    pub fn bursty(mean: f64, burst: f64) -> Self {
        let to_good = 1.0 / burst;
        Self::GilbertElliott { to_bad: mean * to_good / (1.0 - mean), to_good, good: 0.0, bad: 1.0 }
    }
}

/// The bottleneck of a direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Bits per second, IP headers included.
    pub bits_per_second: u64,
    /// How many bytes may wait for the line; what comes on top is dropped.
    pub queue_bytes: u64,
}

impl Rate {
    /// A line of this many Mbit/s whose queue holds 50 ms, as a well-kept access router's does.
    pub fn mbit(mbit: u64) -> Self {
        let bits_per_second = mbit * 1_000_000;
        Self { bits_per_second, queue_bytes: bits_per_second / 8 / 20 }
    }

    fn nanos(self, bytes: u64) -> u64 {
        let nanos = u128::from(bytes) * 8 * 1_000_000_000 / u128::from(self.bits_per_second.max(1));
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }
}

/// Whether packets may overtake one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// They may not: a packet waits for the ones before it.
    #[default]
    Kept,
    /// Jitter may put a later packet before an earlier one.
    MayChange,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It comes out of the line at this time.
    Due(u64),
    /// It is lost by chance.
    Lost,
    /// The queue before the bottleneck is full.
    QueueFull,
}

/// The state of a direction.
#[derive(Debug, Default)]
pub struct Direction {
    spec: Impairment,
    /// The Gilbert-Elliott state.
    is_bad: bool,
    /// When the bottleneck has sent all that waits for it.
    free_at: u64,
    /// The latest due time handed out.
    last_due: u64,
}

impl Direction {
    /// A direction with nothing under way.
    pub fn new(spec: Impairment) -> Self {
        Self { spec, ..Self::default() }
    }

    /// Changes what happens from now on.
    pub fn set(&mut self, spec: Impairment) {
        self.spec = spec;
        self.is_bad = false;
    }

    /// Whether there is a bottleneck, whose decisions depend on when packets reach it.
    pub fn is_shaped(&self) -> bool {
        self.spec.rate.is_some()
    }

    /// Decides about a packet of `length` bytes that enters at `now`.
    pub fn admit(&mut self, now: u64, length: usize, rng: &mut impl RngCore) -> Verdict {
        let mut at = now;
        if let Some(rate) = self.spec.rate {
            let start = self.free_at.max(now);
            if start - now > rate.nanos(rate.queue_bytes) {
                return Verdict::QueueFull;
            }
            self.free_at = start + rate.nanos(length as u64);
            at = self.free_at;
        }
        if self.is_lost(rng) {
            return Verdict::Lost;
        }
        let mut due = at + self.delay(rng);
        if self.spec.order == Order::Kept {
            due = due.max(self.last_due);
            self.last_due = due;
        }
        Verdict::Due(due)
    }

    fn is_lost(&mut self, rng: &mut impl RngCore) -> bool {
        match self.spec.loss {
            Loss::None => false,
            Loss::Uniform(probability) => chance(rng, probability),
            Loss::GilbertElliott { to_bad, to_good, good, bad } => {
                let leave = if self.is_bad { to_good } else { to_bad };
                self.is_bad ^= chance(rng, leave);
                chance(rng, if self.is_bad { bad } else { good })
            }
        }
    }

    fn delay(&self, rng: &mut impl RngCore) -> u64 {
        let delay = nanos(self.spec.delay);
        let jitter = nanos(self.spec.jitter);
        if jitter == 0 {
            return delay;
        }
        (delay + rng.next_u64() % (2 * jitter + 1)).saturating_sub(jitter)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4)
}

/// True with this probability.
fn chance(rng: &mut impl RngCore, probability: f64) -> bool {
    probability > 0.0 && f64::from(rng.next_u32()) < probability * (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng as _;

    use super::*;

    const MS: u64 = 1_000_000;

    fn losses(loss: Loss, packets: usize) -> Vec<bool> {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut line = Direction::new(Impairment::default().loss(loss));
        (0..packets).map(|_| line.admit(0, 100, &mut rng) == Verdict::Lost).collect()
    }

    #[test]
    fn uniform_loss_has_its_mean() {
        let lost = losses(Loss::Uniform(0.1), 100_000).into_iter().filter(|lost| *lost).count();
        assert!((9_500..10_500).contains(&lost), "{lost}");
    }

    #[test]
    fn bursty_loss_has_its_mean_and_its_burst_length() {
        let lost = losses(Loss::bursty(0.08, 20.0), 400_000);
        let total = lost.iter().filter(|lost| **lost).count();
        let bursts = lost.windows(2).filter(|pair| !pair[0] && pair[1]).count();
        assert!((28_000..36_000).contains(&total), "{total}");
        assert!((18..23).contains(&(total / bursts)), "{}", total / bursts);
    }

    #[test]
    fn rate_spaces_packets_and_bounds_the_queue() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        // 1000 bytes take 1 ms; four of them may wait.
        let rate = Rate { bits_per_second: 8_000_000, queue_bytes: 4_000 };
        let mut line = Direction::new(Impairment::default().rate(rate));
        let verdicts: Vec<_> = (0..6).map(|_| line.admit(0, 1000, &mut rng)).collect();
        let due = |ms: u64| Verdict::Due(ms * MS);
        assert_eq!(verdicts, [due(1), due(2), due(3), due(4), due(5), Verdict::QueueFull]);
        assert_eq!(line.admit(10 * MS, 1000, &mut rng), due(11));
    }

    #[test]
    fn jitter_stays_in_its_range_and_keeps_the_order_unless_told() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let spec = Impairment::delay(Duration::from_millis(50)).jitter(Duration::from_millis(10));
        for (order, may_overtake) in [(Order::Kept, false), (Order::MayChange, true)] {
            let mut line = Direction::new(spec.order(order));
            let dues: Vec<u64> = (0..1000)
                .map(|i| match line.admit(i * MS, 100, &mut rng) {
                    Verdict::Due(due) => due,
                    other => panic!("{other:?}"),
                })
                .collect();
            let in_range = |(i, due): (usize, &u64)| (40 * MS..=60 * MS).contains(&(due - i as u64 * MS));
            assert!(dues.iter().enumerate().all(in_range));
            assert_eq!(dues.windows(2).any(|pair| pair[1] < pair[0]), may_overtake);
        }
    }
}
