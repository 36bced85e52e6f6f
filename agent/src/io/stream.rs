//! This side of a relay's byte stream, as the driver holds it.

use mesh_pipe::{Train, TrainReceiver, TrainSender, trains};
use tokio::sync::mpsc;

/// Trains that came and wait for the driver; while they do, nothing more is read from the stream.
const INBOUND_TRAINS: usize = 64;
/// Bytes that wait to be written: 20 ms at 100 Mbit/s. More would be delay, not throughput.
const OUTBOUND_BYTES: usize = 256 << 10;

/// The ends for the driver.
#[derive(Debug)]
pub struct RelayPipe {
    /// Takes trains to be sent.
    pub outbound: TrainSender,
    /// Gives trains that came.
    pub inbound: mpsc::Receiver<Train>,
}

impl RelayPipe {
    /// Makes the ends for the driver, and those for the task that carries the stream.
    #[must_use]
    pub fn new() -> (Self, TrainReceiver, mpsc::Sender<Train>) {
        let (outbound, waiting) = trains(OUTBOUND_BYTES);
        let (sender, inbound) = mpsc::channel(INBOUND_TRAINS);
        (Self { outbound, inbound }, waiting, sender)
    }
}
