//! A virtual socket for quinn: it receives what the front hands it, and sends through the front's socket.
//!
//! Received datagrams wait in fixed slots that are allocated once. When they are full, what comes is dropped: QUIC sends
//! it again, and a flood costs no memory. The slot that was emptied last is filled first, so that only as many are ever
//! touched as were full at the same time.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use quinn::{AsyncUdpSocket, UdpPoller};
use quinn_udp::{RecvMeta, Transmit};

use super::socket::FrontSocket;

/// Longest QUIC datagram that is taken; quinn tells its peers the same (`max_udp_payload_size`).
pub(super) const MAX_QUIC_DATAGRAM: usize = 1472;
/// Slots: the first flights of some 300 clients that connect at the same moment. 1.5 MiB, of
/// which untouched pages cost nothing.
const SLOTS: usize = 1024;

/// What quinn takes for a UDP socket.
pub(super) struct VirtualSocket {
    socket: Arc<FrontSocket>,
    inbound: Mutex<Inbound>,
}

/// Why a datagram was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QuicDrop {
    /// Longer than [`MAX_QUIC_DATAGRAM`].
    TooLong,
    /// All slots are full.
    QueueFull,
}

struct Inbound {
    /// [`SLOTS`] slots of [`MAX_QUIC_DATAGRAM`] bytes.
    slots: Box<[u8]>,
    /// The slots that are empty; the last one is filled next.
    empty: Vec<usize>,
    waiting: VecDeque<(usize, RecvMeta)>,
    waker: Option<Waker>,
}

type Writable = Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>;

struct WritePoller {
    socket: Arc<FrontSocket>,
    waiting: Option<Writable>,
}

impl VirtualSocket {
    pub(super) fn new(socket: Arc<FrontSocket>) -> Arc<Self> {
        let inbound = Inbound {
            slots: vec![0; SLOTS * MAX_QUIC_DATAGRAM].into_boxed_slice(),
            empty: (0..SLOTS).rev().collect(),
            waiting: VecDeque::new(),
            waker: None,
        };
        Arc::new(Self { socket, inbound: Mutex::new(inbound) })
    }

    /// Queues one datagram for quinn.
    pub(super) fn handle_datagram(&self, meta: &RecvMeta, datagram: &[u8]) -> Result<(), QuicDrop> {
        let waker = {
            let mut inbound = self.lock();
            inbound.push(meta, datagram)?;
            inbound.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inbound> {
        // Nothing panics while it is held; if something did, the queue would still be whole.
        self.inbound.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inbound {
    fn push(&mut self, meta: &RecvMeta, datagram: &[u8]) -> Result<(), QuicDrop> {
        if datagram.len() > MAX_QUIC_DATAGRAM {
            return Err(QuicDrop::TooLong);
        }
        let slot = self.empty.pop().ok_or(QuicDrop::QueueFull)?;
        let start = slot * MAX_QUIC_DATAGRAM;
        self.slots[start..start + datagram.len()].copy_from_slice(datagram);
        self.waiting.push_back((slot, RecvMeta { len: datagram.len(), stride: datagram.len(), ..*meta }));
        Ok(())
    }
}

impl AsyncUdpSocket for VirtualSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(WritePoller { socket: self.socket.clone(), waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match self.socket.try_send_quic(transmit) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            // QUIC treats what could not be sent as lost; quinn would end the connection on an error.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbound = self.lock();
        let mut count = 0;
        for (buffer, meta) in buffers.iter_mut().zip(metas) {
            let Some((slot, received)) = inbound.waiting.pop_front() else { break };
            let start = slot * MAX_QUIC_DATAGRAM;
            buffer[..received.len].copy_from_slice(&inbound.slots[start..start + received.len]);
            inbound.empty.push(slot);
            *meta = received;
            count += 1;
        }
        if count == 0 {
            inbound.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.socket.local_addr())
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_gso_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

impl fmt::Debug for VirtualSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtualSocket").finish_non_exhaustive()
    }
}

impl UdpPoller for WritePoller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let socket = &this.socket;
        let waiting = this.waiting.get_or_insert_with(|| {
            let socket = socket.clone();
            Box::pin(async move { socket.writable().await })
        });
        let result = waiting.as_mut().poll(cx);
        if result.is_ready() {
            this.waiting = None;
        }
        result
    }
}

impl fmt::Debug for WritePoller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WritePoller").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_slots_keep_order_and_drop_what_does_not_fit() {
        let socket = Arc::new(FrontSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap());
        let virtual_socket = VirtualSocket::new(socket);
        let meta = RecvMeta::default();
        assert_eq!(
            virtual_socket.handle_datagram(&meta, &[0; MAX_QUIC_DATAGRAM + 1]),
            Err(QuicDrop::TooLong)
        );
        for round in 0..3_u8 {
            for index in 0..SLOTS {
                virtual_socket.handle_datagram(&meta, &[round, index.to_le_bytes()[0]]).unwrap();
            }
            assert_eq!(virtual_socket.handle_datagram(&meta, &[9]), Err(QuicDrop::QueueFull));
            let mut cx = Context::from_waker(Waker::noop());
            for index in 0..SLOTS {
                let mut bytes = [0; MAX_QUIC_DATAGRAM];
                let mut metas = [RecvMeta::default()];
                let got = virtual_socket.poll_recv(&mut cx, &mut [IoSliceMut::new(&mut bytes)], &mut metas);
                assert!(matches!(got, Poll::Ready(Ok(1))));
                assert_eq!(bytes[..metas[0].len], [round, index.to_le_bytes()[0]]);
            }
            let mut bytes = [0; MAX_QUIC_DATAGRAM];
            let mut metas = [RecvMeta::default()];
            let got = virtual_socket.poll_recv(&mut cx, &mut [IoSliceMut::new(&mut bytes)], &mut metas);
            assert!(got.is_pending());
        }
    }
    #[tokio::test]
    async fn what_is_taken_at_once_touches_no_other_slot() {
        let socket = Arc::new(FrontSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap());
        let virtual_socket = VirtualSocket::new(socket);
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..10 {
            virtual_socket.handle_datagram(&RecvMeta::default(), &[7; 100]).unwrap();
            let mut bytes = [0; MAX_QUIC_DATAGRAM];
            let buffers = &mut [IoSliceMut::new(&mut bytes)];
            let got = virtual_socket.poll_recv(&mut cx, buffers, &mut [RecvMeta::default()]);
            assert!(matches!(got, Poll::Ready(Ok(1))));
        }
        let inbound = virtual_socket.lock();
        assert_eq!(inbound.slots[..100], [7; 100]);
        assert!(inbound.slots[MAX_QUIC_DATAGRAM..].iter().all(|byte| *byte == 0));
        assert_eq!(inbound.empty.len(), SLOTS);
    }
}
