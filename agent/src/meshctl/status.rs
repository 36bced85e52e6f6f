//! `meshctl status`.

use std::{io::IsTerminal, time::Duration};

use mesh_proto::{
    kubernetes::{KubernetesStatus, PodNetworkState},
    status::SelfStatus,
};
use time::OffsetDateTime;

use super::{
    CommandError, Outcome,
    cli::{Check, StatusArgs},
    print_document, print_text,
};
use crate::{
    local_api::{Client, ClientError},
    view,
};

/// How often `--watch` looks.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Goes to the top left and clears what follows.
const CLEAR: &str = "\x1b[H\x1b[J";
/// Switches to the terminal's other screen without a cursor, and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

pub(super) async fn run(client: &Client, args: &StatusArgs) -> Result<Outcome, CommandError> {
    if let Some(check) = args.check {
        return Ok(self::check(client, check).await);
    }
    if args.watch {
        return watch(client).await;
    }
    let status = client.status().await?;
    if args.json {
        print_document(&status)?;
    } else {
        print_text(&view::table::status(&status, OffsetDateTime::now_utc()))?;
    }
    Ok(Outcome::Done)
}

async fn check(client: &Client, check: Check) -> Outcome {
    let so = match check {
        Check::Live => client.live().await.is_ok(),
        Check::Ready => client.status().await.is_ok_and(|status| is_ready(&status.this)),
    };
    if so { Outcome::Done } else { Outcome::Failed }
}

/// Returns whether the mesh is up, and with it the network of the pods that this node has. A node that is not in its cluster
/// yet has none: kubelet may wait for this.
fn is_ready(this: &SelfStatus) -> bool {
    let has_pod_network = |kubernetes: &KubernetesStatus| match kubernetes.state {
        PodNetworkState::Ready | PodNetworkState::Waiting | PodNetworkState::Unknown => true,
        PodNetworkState::NoPodRanges | PodNetworkState::Refused | PodNetworkState::NotReady => false,
    };
    this.ready && this.kubernetes.as_ref().is_none_or(has_pod_network)
}

/// Shows the table until Ctrl-C; an agent that is away for a while is shown as such.
async fn watch(client: &Client) -> Result<Outcome, CommandError> {
    let screen = std::io::stdout().is_terminal().then(Screen::enter).transpose()?;
    let mut ticks = tokio::time::interval(WATCH_INTERVAL);
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        tokio::select! {
            biased;
            _ = tokio::signal::ctrl_c() => return Ok(Outcome::Done),
            _ = term.recv() => return Ok(Outcome::Done),
            _ = ticks.tick() => {}
        }
        let text = match client.status().await {
            Ok(status) => view::table::status(&status, OffsetDateTime::now_utc()),
            Err(error @ (ClientError::Unreachable { .. } | ClientError::Timeout)) => format!("{error}\n"),
            Err(error) => return Err(error.into()),
        };
        let clear = if screen.is_some() { CLEAR } else { "" };
        print_text(&format!("{clear}{text}"))?;
    }
}

/// The terminal's other screen; dropping it gives the first one back.
struct Screen;

impl Screen {
    fn enter() -> std::io::Result<Self> {
        print_text(ENTER)?;
        Ok(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // There is nothing left to do about a terminal that is gone.
        let _ = print_text(LEAVE);
    }
}
