//! Notices that the host has slept, and says so.
//!
//! A sleep ends without any event of the network, where that is still the same, but every NAT, relay and peer may have
//! forgotten this node. What follows from a wake costs a few packets, so it follows from every one, a short one in the dark
//! as well; no socket is made anew for it.

use std::{io, thread};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::os::{
    clocks::{Clocks, LOOK_INTERVAL, Sleeps, Woke},
    linux::{SystemClocks, Ticks},
};

/// Wakes that wait; each says that everything is to be asked anew, so one would do.
const WAKES: usize = 2;
/// The thread calls next to nothing.
const STACK_LEN: usize = 128 << 10;

/// Starts to watch the system's clocks, on a thread of its own: the timer for it is none of the runtime's.
///
/// It ends within [`LOOK_INTERVAL`] after cancellation, or when nobody listens any more.
///
/// # Errors
/// When the system has no timer, or no thread for it.
pub(super) fn spawn(cancel: &CancellationToken) -> io::Result<mpsc::Receiver<Woke>> {
    let ticks = Ticks::every(LOOK_INTERVAL)?;
    let (wakes, receiver) = mpsc::channel(WAKES);
    let cancel = cancel.clone();
    thread::Builder::new().name("mesh-clocks".to_owned()).stack_size(STACK_LEN).spawn(move || {
        if let Err(error) = watch(&SystemClocks, &ticks, &wakes, &cancel) {
            tracing::error!(%error, "sleep is not noticed any more");
        }
    })?;
    Ok(receiver)
}

/// Looks at the clocks at every tick, until it is cancelled.
fn watch(
    clocks: &impl Clocks,
    ticks: &Ticks,
    wakes: &mpsc::Sender<Woke>,
    cancel: &CancellationToken,
) -> io::Result<()> {
    let mut sleeps = Sleeps::new(clocks.read()?);
    while !(cancel.is_cancelled() || wakes.is_closed()) {
        ticks.wait()?;
        if let Some(woke) = sleeps.look(clocks.read()?) {
            tracing::debug!(away = ?woke.away, "the host was away");
            // While others wait, what is to be done for this one is still to be done.
            let _ = wakes.try_send(woke);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Mutex, PoisonError},
        time::Duration,
    };

    use super::*;
    use crate::os::clocks::Reading;

    /// Clocks that go on by hand.
    #[derive(Clone, Default)]
    struct Hands(Arc<Mutex<Reading>>);

    impl Clocks for Hands {
        fn read(&self) -> io::Result<Reading> {
            Ok(*self.0.lock().unwrap_or_else(PoisonError::into_inner))
        }
    }

    #[tokio::test]
    async fn a_wake_is_told_soon_and_once() {
        let hands = Hands::default();
        let (wakes, mut woken) = mpsc::channel(WAKES);
        let ticks = Ticks::every(Duration::from_millis(5)).unwrap();
        let (clocks, cancel) = (hands.clone(), CancellationToken::new());
        let watching = {
            let cancel = cancel.clone();
            thread::spawn(move || watch(&clocks, &ticks, &wakes, &cancel))
        };
        let night = Duration::from_secs(8 * 3600);
        let moment = Duration::from_millis(50);
        assert!(tokio::time::timeout(moment, woken.recv()).await.is_err(), "nobody slept");
        *hands.0.lock().unwrap() = Reading { awake: Duration::ZERO, elapsed: night, wall: night };
        assert_eq!(woken.recv().await, Some(Woke { away: night, unseen: night }));
        assert!(tokio::time::timeout(moment, woken.recv()).await.is_err(), "one sleep");
        cancel.cancel();
        watching.join().unwrap().unwrap();
    }
}
