//! Carries control and trains over one byte stream, both ways, until one side has had enough.
//!
//! What is written is gathered: a piece of the control stream first, then all trains that wait, up to
//! [`MAX_WRITE`], and only then handed to the stream, which makes one message of it if it can. What is read is handed
//! on as it comes; a listener that is behind is waited for, and TCP passes that on to the other side.

use std::{io, time::Duration};

use bytes::{Buf, BytesMut};
use mesh_proto::stream::{DecodeError, Frame, HEADER_LEN, MAX_BODY_LEN, control_header, relay_header};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, split},
    sync::mpsc,
};

use crate::trains::{Train, TrainReceiver};

/// Bytes of the control stream that wait between it and the pipe, each way: as much as a caller wants to hand to
/// [`tokio::io::duplex`].
pub const CONTROL_ROOM: usize = 64 << 10;
/// Bytes that are gathered for one write, or one train: what is gathered waits where nothing is dropped any more.
const MAX_WRITE: usize = 64 << 10;
/// Piece of the control stream that is sent at once.
const MAX_PIECE: usize = 16 << 10;
/// Bytes that are read at once.
const READ_CHUNK: usize = 64 << 10;

/// What a pipe carries on this side.
#[derive(Debug)]
pub struct Ends<T> {
    /// The control stream; when its other end is dropped, the pipe is closed in order.
    pub control: DuplexStream,
    /// Trains to be sent.
    pub outbound: TrainReceiver,
    /// Trains that came.
    pub inbound: mpsc::Sender<T>,
}

/// Why a pipe ended.
#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    /// The other side closed it.
    #[error("the pipe was closed")]
    Closed,
    /// The stream failed.
    #[error("the pipe failed: {0}")]
    Io(#[from] io::Error),
    /// What came are no frames.
    #[error(transparent)]
    Frame(#[from] DecodeError),
    /// Nothing came for too long.
    #[error("nothing came through the pipe for {} s", .0.as_secs())]
    Silent(Duration),
    /// Nobody on this side listens any more.
    #[error("nobody listens")]
    Deaf,
}

/// Carries until this side's control stream is dropped, or until the pipe fails. `wrap` makes of a train what is
/// handed on; a pipe on which nothing comes for `idle` has failed.
///
/// # Errors
/// When it was not this side that ended it.
pub async fn carry<S, T>(
    stream: S,
    ends: Ends<T>,
    idle: Duration,
    wrap: impl Fn(Train) -> T,
) -> Result<(), CarryError>
where
    S: AsyncRead + AsyncWrite,
{
    let (reader, writer) = split(stream);
    let (control_out, control_in) = split(ends.control);
    tokio::select! {
        biased;
        sent = send(writer, control_out, ends.outbound) => sent,
        received = receive(reader, control_in, idle, |train| {
            let train = wrap(train);
            async { ends.inbound.send(train).await.map_err(|_closed| CarryError::Deaf) }
        }) => received,
    }
}

/// Sends until the control stream has ended.
async fn send<S: AsyncWrite>(
    mut stream: WriteHalf<S>,
    mut control: ReadHalf<DuplexStream>,
    trains: TrainReceiver,
) -> Result<(), CarryError> {
    let mut piece = BytesMut::with_capacity(MAX_PIECE);
    let mut out = Vec::new();
    let mut waiting: Option<Train> = None;
    loop {
        if waiting.is_none() {
            let len = tokio::select! {
                biased;
                len = control.read_buf(&mut piece) => Some(len?),
                () = trains.filled() => None,
            };
            if len == Some(0) {
                // Whether the goodbye arrives does not matter.
                let _ = stream.shutdown().await;
                return Ok(());
            }
        }
        if !piece.is_empty() {
            out.extend_from_slice(&control_header(piece.len()));
            out.extend_from_slice(&piece);
            piece.clear();
        }
        while let Some(train) = waiting.take().or_else(|| trains.pop()) {
            if !out.is_empty() && out.len() + train.bytes.len() > MAX_WRITE {
                waiting = Some(train);
                break;
            }
            // A train comes from a datagram path: it is never longer, nor are its datagrams.
            let Ok(stride) = u16::try_from(train.stride) else { continue };
            if stride > 0 && train.bytes.len() <= MAX_BODY_LEN {
                out.extend_from_slice(&relay_header(stride, train.bytes.len()));
                out.extend_from_slice(&train.bytes);
            }
        }
        stream.write_all(&out).await?;
        stream.flush().await?;
        out.clear();
        out.shrink_to(MAX_PIECE);
    }
}

/// Receives until something is wrong.
async fn receive<S: AsyncRead, F: Future<Output = Result<(), CarryError>>>(
    mut stream: ReadHalf<S>,
    mut control: WriteHalf<DuplexStream>,
    idle: Duration,
    hand_on: impl Fn(Train) -> F,
) -> Result<(), CarryError> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ_CHUNK);
        let read = tokio::time::timeout(idle, stream.read_buf(&mut buffer)).await;
        if read.map_err(|_elapsed| CarryError::Silent(idle))?? == 0 {
            return Err(CarryError::Closed);
        }
        while let Some((frame, len)) = Frame::decode(&buffer)? {
            match frame {
                Frame::Control(piece) => {
                    control.write_all(piece).await.map_err(|_closed| CarryError::Deaf)?;
                }
                Frame::Relay { stride, frames } => {
                    if !frames.is_empty() {
                        hand_on(Train { bytes: frames.to_vec(), stride: stride.into() }).await?;
                    }
                }
                Frame::Unknown(_) => {}
            }
            buffer.advance(len);
        }
        debug_assert!(buffer.len() <= HEADER_LEN + MAX_BODY_LEN, "one unfinished frame at most");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;
    use crate::trains::{TrainSender, trains};

    const IDLE: Duration = Duration::from_secs(15);

    struct Side {
        control: DuplexStream,
        outbound: TrainSender,
        inbound: mpsc::Receiver<Train>,
        task: tokio::task::JoinHandle<Result<(), CarryError>>,
    }

    fn side(stream: DuplexStream) -> Side {
        let (control, far) = duplex(CONTROL_ROOM);
        let (outbound, trains) = trains(1 << 18);
        let (sender, inbound) = mpsc::channel(16);
        let ends = Ends { control: far, outbound: trains, inbound: sender };
        Side { control, outbound, inbound, task: tokio::spawn(carry(stream, ends, IDLE, |train| train)) }
    }

    #[tokio::test]
    async fn control_and_trains_arrive_whole_and_a_dropped_side_ends_both() {
        let (one, two) = duplex(1000);
        let (mut a, mut b) = (side(one), side(two));
        for round in 1..20_u8 {
            let train = vec![round; usize::from(round) * 1000 + 7];
            assert_eq!(a.outbound.push(&train, 1000), 0);
            a.control.write_all(&[round; 3]).await.unwrap();
            assert_eq!(b.inbound.recv().await.unwrap(), Train { bytes: train, stride: 1000 });
            let mut read = [0; 3];
            b.control.read_exact(&mut read).await.unwrap();
            assert_eq!(read, [round; 3]);
        }
        b.outbound.push(b"back", 4);
        assert_eq!(a.inbound.recv().await.unwrap().bytes, b"back");
        drop(a.control);
        a.task.await.unwrap().unwrap();
        assert!(matches!(b.task.await.unwrap(), Err(CarryError::Closed)));
        assert_eq!(b.control.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(b.outbound.push(b"late", 4), 1, "nobody takes it");
    }

    #[tokio::test(start_paused = true)]
    async fn garbage_and_silence_end_a_pipe() {
        let (mut peer, stream) = duplex(1000);
        let a = side(stream);
        peer.write_all(&[0xff; 100]).await.unwrap();
        assert!(matches!(a.task.await.unwrap(), Err(CarryError::Frame(DecodeError::TooLong(_)))));
        let (_peer, stream) = duplex(1000);
        let a = side(stream);
        assert!(matches!(a.task.await.unwrap(), Err(CarryError::Silent(IDLE))));
    }

    #[tokio::test]
    async fn a_slow_reader_gets_the_latest_trains_and_control_all_the_same() {
        let (one, two) = duplex(1000);
        let mut a = side(one);
        // The other side does not read yet: most of this is dropped.
        let mut dropped = 0;
        for index in 0..1000_u16 {
            dropped += a.outbound.push(&[index.to_be_bytes(); 500].concat(), 1000);
        }
        a.control.write_all(b"important").await.unwrap();
        assert!(dropped > 0);
        let mut b = side(two);
        let mut read = [0; 9];
        let (mut last, mut got) = (0, 0);
        while last < 999 {
            let train = b.inbound.recv().await.unwrap();
            let index = u16::from_be_bytes([train.bytes[0], train.bytes[1]]);
            assert!(got == 0 || index > last, "in order");
            (last, got) = (index, got + 1);
        }
        assert_eq!(got + dropped, 1000);
        b.control.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"important");
    }
}
