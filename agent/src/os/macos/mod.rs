//! macOS, by its routing socket (route(4)).
//!
//! What its messages mean is read by `messages`, which knows nothing of the system and is tested everywhere; `watch` is
//! the few lines that need macOS.

mod messages;
#[cfg(target_os = "macos")]
mod watch;

#[cfg(target_os = "macos")]
pub use super::burst::Changes;
#[cfg(target_os = "macos")]
pub use watch::Watch;
