//! The first random bytes of the cryptography library, gathered away from the one thread on which the agent lives.
//!
//! AWS-LC seeds its generators from the jitter of the CPU, once in a process. That takes some 25 ms of computing, for which
//! packets of a restarted agent would wait. Whoever is about to make the first TLS connection waits for it here.

use rustls::crypto::aws_lc_rs;
use tokio::{sync::OnceCell, task::spawn_blocking};

static GATHERED: OnceCell<()> = OnceCell::const_new();

/// Waits until randomness costs nothing any more. Cancel-safe.
pub async fn gathered() {
    GATHERED
        .get_or_init(|| async {
            let gather = || aws_lc_rs::default_provider().secure_random.fill(&mut [0]);
            // Whoever needs it asks again, and is told of a failure.
            if !matches!(spawn_blocking(gather).await, Ok(Ok(()))) {
                tracing::warn!("the cryptography library has no randomness yet");
            }
        })
        .await;
}
