//! Sockets to name servers that never lead through the mesh.
//!
//! A socket is connected before it is used: the system chooses a route then, and with it the address that the socket
//! sends from. If that is one of the mesh's the route leads into the mesh, whatever the server's address is (a service or
//! a pod behind a peer, say), and nothing is sent. A connected socket is given answers of its server's alone.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use hickory_resolver::net::runtime::{
    DnsUdpSocket, RuntimeProvider, TokioHandle, TokioRuntimeProvider, TokioTime,
};
use ipnet::IpNet;
use tokio::{io::ReadBuf, net::UdpSocket};

/// Makes sockets to one name server.
#[derive(Clone)]
pub(super) struct Underlay {
    tokio: TokioRuntimeProvider,
    /// Where the server is, with the link if it is of one: the library knows nothing of links.
    server: SocketAddr,
    mesh: Arc<[IpNet]>,
}

/// A socket that is connected to a server.
pub(super) struct Connected {
    socket: UdpSocket,
    /// The server, as it was named by who asks.
    server: SocketAddr,
}

/// The route to a server leads through the mesh.
#[derive(Debug, thiserror::Error)]
#[error("the name server is behind the mesh")]
pub(super) struct ThroughMesh;

type Socket<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

impl Underlay {
    pub(super) fn new(server: SocketAddr, mesh: Arc<[IpNet]>) -> Self {
        Self { tokio: TokioRuntimeProvider::new(), server, mesh }
    }

    /// Returns a socket that leads to the server, and not through the mesh.
    pub(super) async fn connect(&self, local: SocketAddr) -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind(local).await?;
        socket.connect(self.server).await?;
        let from = socket.local_addr()?.ip().to_canonical();
        if self.mesh.iter().any(|range| range.contains(&from)) {
            return Err(io::Error::other(ThroughMesh));
        }
        Ok(socket)
    }

    /// Returns where the server is.
    pub(super) fn server(&self) -> SocketAddr {
        self.server
    }

    /// Returns any address of the server's family.
    pub(super) fn any(&self) -> SocketAddr {
        match self.server {
            SocketAddr::V4(_) => (IpAddr::from([0; 4]), 0).into(),
            SocketAddr::V6(_) => (IpAddr::from([0; 16]), 0).into(),
        }
    }
}

impl RuntimeProvider for Underlay {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = Connected;
    type Tcp = <TokioRuntimeProvider as RuntimeProvider>::Tcp;

    fn create_handle(&self) -> TokioHandle {
        self.tokio.create_handle()
    }

    fn connect_tcp(
        &self,
        _server: SocketAddr,
        bind: Option<SocketAddr>,
        patience: Option<Duration>,
    ) -> Socket<Self::Tcp> {
        let this = self.clone();
        Box::pin(async move {
            // Its route is TCP's, too.
            this.connect(this.any()).await?;
            this.tokio.connect_tcp(this.server, bind, patience).await
        })
    }

    fn bind_udp(&self, local: SocketAddr, server: SocketAddr) -> Socket<Connected> {
        let this = self.clone();
        Box::pin(async move { Ok(Connected { socket: this.connect(local).await?, server }) })
    }
}

impl DnsUdpSocket for Connected {
    type Time = TokioTime;

    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(self.socket.poll_recv(cx, &mut buffer))?;
        Poll::Ready(Ok((buffer.filled().len(), self.server)))
    }

    fn poll_send_to(&self, cx: &mut Context<'_>, bytes: &[u8], _to: SocketAddr) -> Poll<io::Result<usize>> {
        self.socket.poll_send(cx, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_route_through_the_mesh_is_not_taken() {
        let server: SocketAddr = "127.0.0.53:53".parse().unwrap();
        let inside = Underlay::new(server, ["127.0.0.1/32".parse().unwrap()].into());
        let error = inside.connect(inside.any()).await.unwrap_err();
        assert!(error.get_ref().is_some_and(|error| error.is::<ThroughMesh>()), "{error}");
        let outside = Underlay::new(server, ["127.0.0.2/32".parse().unwrap()].into());
        assert_eq!(outside.connect(outside.any()).await.unwrap().peer_addr().unwrap(), server);
    }
}
