//! Whose turn it is: one agent at a time has a state directory. A pod waits for the one before it, and is handed what that
//! one has.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    entropy,
    identity::{StateDir, StateError, StateLock},
    keep::{Inherited, Successor},
};

/// How often a pod looks whether its turn has come: what it may add to the gap.
const INTERVAL: Duration = Duration::from_millis(10);

/// When an agent may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// No other one may be there.
    Now,
    /// The one before it may still be there, as while a DaemonSet is rolled out with `maxSurge`: that one hands on what it
    /// has when it ends.
    Awaited,
}

/// How a pod waits.
enum Waiting {
    NotYet,
    /// It will be handed what the one before it has.
    Listening(Successor),
    /// It will not: it could not make its socket.
    Unheard,
}

/// Takes the state directory, and what the process before this one hands on with it; `None` when cancelled before.
///
/// # Errors
/// When the directory cannot be locked, or somebody has it and this is not to wait.
pub(super) async fn lock(
    state_dir: &StateDir,
    turn: Turn,
    cancel: &CancellationToken,
) -> anyhow::Result<Option<(StateLock, Inherited)>> {
    let mut waiting = Waiting::NotYet;
    loop {
        match (state_dir.lock(), turn) {
            (Err(StateError::InUse { .. }), Turn::Awaited) => {}
            (taken, _) => return Ok(Some((taken?, waiting.into_inherited()))),
        }
        match &mut waiting {
            Waiting::NotYet => waiting = Waiting::begin(state_dir).await,
            Waiting::Listening(successor) => successor.take(),
            Waiting::Unheard => {}
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(None),
            () = sleep(INTERVAL) => {}
        }
    }
}

impl Waiting {
    async fn begin(state_dir: &StateDir) -> Self {
        tracing::info!("another pod is this node's agent: waiting until it ends");
        entropy::gathered().await;
        match Successor::listen(&state_dir.successor_socket()) {
            Ok(successor) => Self::Listening(successor),
            Err(error) => {
                // To be handed nothing costs a pause of some hundred milliseconds; to end would cost the node its next agent.
                tracing::warn!(%error, "this pod cannot be handed what the other one has, and will begin anew");
                Self::Unheard
            }
        }
    }

    fn into_inherited(self) -> Inherited {
        match self {
            Self::Listening(successor) => successor.into_inherited(),
            Self::NotYet | Self::Unheard => Inherited::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use tokio::time::timeout;

    use super::*;
    use crate::keep::Keeper;

    /// Waits beside a lock that is let go once this waits; `end` does what the one before does at its end.
    async fn wait(state_dir: &StateDir, end: impl FnOnce()) -> Inherited {
        // Another test's thread may be at it, for which a clock that is paused does not wait.
        entropy::gathered().await;
        let before = state_dir.lock().unwrap();
        let cancel = CancellationToken::new();
        let mut lock = std::pin::pin!(lock(state_dir, Turn::Awaited, &cancel));
        assert!(timeout(Duration::from_secs(60), &mut lock).await.is_err(), "it waits");
        end();
        drop(before);
        lock.await.unwrap().unwrap().1
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_waits_and_is_handed_what_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = StateDir::create(&dir.path().join("state")).unwrap();
        let keeper = Keeper::for_successor(state_dir.successor_socket());
        keeper.keep("mesh-tun-0", &File::open("/dev/null").unwrap());
        let inherited = wait(&state_dir, || assert!(keeper.hand_on())).await;
        assert_eq!(inherited.names().collect::<Vec<_>>(), ["mesh-tun-0"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_cannot_make_its_socket_waits_and_is_handed_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = StateDir::create(&dir.path().join("state")).unwrap();
        // Also root is refused here.
        std::fs::create_dir(state_dir.successor_socket()).unwrap();
        assert!(wait(&state_dir, || {}).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_waits_for_the_one_before_it_only_where_it_is_its_turn_next() {
        let parent = tempfile::tempdir().unwrap();
        let state_dir = StateDir::create(&parent.path().join("state")).unwrap();
        let cancel = CancellationToken::new();
        let first = lock(&state_dir, Turn::Now, &cancel).await.unwrap();
        assert!(first.is_some());
        assert!(lock(&state_dir, Turn::Now, &cancel).await.is_err());
        let next = lock(&state_dir, Turn::Awaited, &cancel);
        tokio::pin!(next);
        assert!(timeout(Duration::from_secs(60), &mut next).await.is_err(), "it waits");
        drop(first);
        let next = next.await.unwrap();
        assert!(next.is_some());
        let third = lock(&state_dir, Turn::Awaited, &cancel);
        cancel.cancel();
        assert!(third.await.unwrap().is_none(), "told to stop before its turn");
    }
}
