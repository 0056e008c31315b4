//! Sockets: TCP in production, with TCP_NODELAY on each (without it a keep-alive answer waits 40 ms for an ACK).

use async_trait::async_trait;
use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// A connection: bytes in both directions.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Accepts connections.
#[async_trait]
pub trait Listener: Send + Sync {
    /// The next connection, and who it comes from.
    async fn accept(&self) -> io::Result<(Box<dyn Connection>, SocketAddr)>;
    /// Where it listens: with port 0 asked for, the port that was given.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// Makes connections and listeners.
#[async_trait]
pub trait Network: Send + Sync {
    /// Listens on `address` (host:port).
    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>>;
    /// Connects to `address` (host:port). The caller sets the deadline.
    async fn connect(&self, address: &str) -> io::Result<Box<dyn Connection>>;
}

/// TCP.
#[derive(Debug, Clone, Copy)]
pub struct RealNetwork;

#[async_trait]
impl Network for RealNetwork {
    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(RealListener(TcpListener::bind(address).await?)))
    }

    async fn connect(&self, address: &str) -> io::Result<Box<dyn Connection>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

struct RealListener(TcpListener);

#[async_trait]
impl Listener for RealListener {
    async fn accept(&self) -> io::Result<(Box<dyn Connection>, SocketAddr)> {
        let (stream, peer) = self.0.accept().await?;
        stream.set_nodelay(true)?;
        Ok((Box::new(stream), peer))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}
