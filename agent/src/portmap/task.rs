//! The task: feeds the policy, asks what it wants asked, and tells what came of it.

use std::{net::Ipv4Addr, time::Duration};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Report, announced,
    asking::{Asker, Outcome},
    igd::Service,
    policy::{Policy, Restart},
    router,
    store::Store,
};
use crate::os::HostNetworks;

/// How long the removal of the mapping may hold up the end of the agent: some retransmissions.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

struct Task {
    policy: Policy,
    store: Store,
    port: u16,
    service: Option<Service>,
    asked: FuturesUnordered<BoxFuture<'static, Outcome>>,
    reports: watch::Sender<Report>,
}

/// What the task is told.
pub(super) struct Inputs {
    pub(super) networks: watch::Receiver<HostNetworks>,
    /// For how long the host has slept, all in all.
    pub(super) slept: watch::Receiver<Duration>,
}

/// Keeps a mapping until it is cancelled, and removes it then.
pub(super) async fn run(
    port: u16,
    store: Store,
    inputs: Inputs,
    reports: watch::Sender<Report>,
    cancel: CancellationToken,
) {
    let Inputs { mut networks, mut slept } = inputs;
    let mut known = Duration::ZERO;
    let policy = Policy::new(port, store.held());
    let announcements = announced::listen()
        .inspect_err(|error| tracing::debug!(%error, "routers' announcements are not heard"))
        .ok();
    let mut task = Task { policy, store, port, service: None, asked: FuturesUnordered::new(), reports };
    loop {
        let (timeout, gateway) = (task.policy.poll_timeout(), task.gateway());
        tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            changed = networks.changed() => {
                if changed.is_err() {
                    break;
                }
                let now = networks.borrow_and_update().clone();
                task.handle_networks(&now);
            }
            changed = slept.changed() => {
                if changed.is_err() {
                    break;
                }
                let slept = *slept.borrow_and_update();
                let unseen = slept.saturating_sub(std::mem::replace(&mut known, slept));
                task.policy.handle_woke(unseen, std_now());
            }
            Some(outcome) = task.asked.next() => task.handle_outcome(outcome),
            () = announced::next(announcements.as_ref(), gateway) => task.policy.handle_announced(std_now()),
            () = sleep_until(timeout.map_or_else(Instant::now, Instant::from_std)), if timeout.is_some() => {
                task.policy.handle_timeout(std_now());
            }
        }
        task.settle().await;
    }
    task.stop().await;
}

impl Task {
    fn gateway(&self) -> Option<Ipv4Addr> {
        self.policy.router().map(|router| router.gateway)
    }

    fn handle_networks(&mut self, networks: &HostNetworks) {
        let router = router::local_address().ok().and_then(|local| router::router(networks, local));
        match self.policy.set_router(router, std_now()) {
            Restart::Yes => {
                self.asked.clear();
                self.service = None;
            }
            Restart::No => {}
        }
    }

    fn handle_outcome(&mut self, outcome: Outcome) {
        tracing::debug!(?outcome, "port mapping");
        let now = std_now();
        match outcome {
            Outcome::Probed(protocol, answer) => {
                let answer = answer.map(|service| {
                    if service.is_some() {
                        self.service = service;
                    }
                });
                self.policy.handle_probed(protocol, answer, now);
            }
            Outcome::Mapped(answer) => self.policy.handle_mapped(answer, now),
            Outcome::Checked(answer) => self.policy.handle_checked(answer, now),
        }
    }

    /// Asks what is to be asked, and tells what is new.
    async fn settle(&mut self) {
        while let Some(ask) = self.policy.poll_ask() {
            if let Some(asker) = self.asker() {
                self.asked.push(asker.ask(ask).boxed());
            }
        }
        let report = Report { mapped: self.policy.mapped(), counts: self.policy.counts() };
        self.reports.send_if_modified(|shown| std::mem::replace(shown, report) != report);
        // What the router held last stays in the file until there is another: the next run may find it there.
        if let Some(held) = self.policy.held() {
            self.store.set_held(Some(held)).await;
        }
    }

    fn asker(&self) -> Option<Asker> {
        let router = self.policy.router()?;
        let (port, nonce) = (self.port, self.store.nonce());
        Some(Asker { router, port, nonce, service: self.service.clone() })
    }

    async fn stop(mut self) {
        let (Some(held), Some(asker)) = (self.policy.held(), self.asker()) else { return };
        self.asked.clear();
        match timeout(STOP_PATIENCE, asker.remove(held)).await {
            Ok(Ok(())) => self.store.set_held(None).await,
            Ok(Err(error)) => tracing::debug!(%error, "the port mapping is left to end by itself"),
            Err(_) => tracing::debug!("the port mapping is left to end by itself"),
        }
    }
}

fn std_now() -> std::time::Instant {
    Instant::now().into_std()
}
