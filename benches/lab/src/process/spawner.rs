//! The thread that starts all processes.
//!
//! `PR_SET_PDEATHSIG` fires when the *thread* that forked ends, not the process. So all forking is done by one
//! thread that lives as long as the lab's process: then its children die exactly when the lab does, by kill -9 too.

use std::io;
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};

type Order = (Command, SyncSender<io::Result<Child>>);

/// Starts the process from the spawner thread.
pub(super) fn spawn(command: Command) -> io::Result<Child> {
    static THREAD: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let orders = THREAD.get_or_init(|| {
        let (sender, orders) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in orders {
                // Whoever asked may be gone; then the child is dropped, and dies with the lab.
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(sender)
    });
    let (answer, child) = sync_channel(1);
    let gone = || io::Error::other("the thread that starts processes is gone");
    orders.lock().unwrap_or_else(PoisonError::into_inner).send((command, answer)).map_err(|_| gone())?;
    child.recv().map_err(|_| gone())?
}
