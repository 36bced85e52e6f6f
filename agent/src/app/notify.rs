//! What the service manager is told (sd_notify): READY, STOPPING, and a watchdog that the driver answers.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{driver::EngineHandle, io::tun::Tun};

/// Says that interface, addresses and routes are up.
pub(super) fn ready() {
    say(&[NotifyState::Ready]);
}

/// Says that the agent is on its way out.
pub(super) fn stopping() {
    say(&[NotifyState::Stopping]);
}

/// Feeds the watchdog, if there is one, twice per period, as long as the driver's thread answers.
pub(super) fn spawn_watchdog<T: Tun>(
    engine: EngineHandle<T>,
    cancel: &CancellationToken,
    tracker: &TaskTracker,
) {
    let Some(period) = sd_notify::watchdog_enabled().filter(|period| *period > Duration::ZERO) else {
        return;
    };
    let half = period / 2;
    let cancel = cancel.clone();
    tracker.spawn(async move {
        let mut ticks = interval_at(Instant::now(), half);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                _ = ticks.tick() => {}
            }
            match timeout(half, engine.snapshot()).await {
                Ok(Ok(_)) => say(&[NotifyState::Watchdog]),
                Ok(Err(_)) => return,
                Err(_) => tracing::error!("the driver does not answer"),
            }
        }
    });
}

fn say(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager does not listen");
    }
}
