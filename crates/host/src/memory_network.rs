//! A network in memory, for tests: under tokio's paused time nothing of it waits for the machine.
//!
//! Addresses are any text. What is written and not yet read is at most `buffer_bytes` a direction, so that a reader who
//! stops holds the writer up as soon as a test wants it.

use crate::network::{Connection, Listener, Network};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

/// Connections that wait to be accepted.
const BACKLOG: usize = 128;

/// See the module.
#[derive(Debug)]
pub struct MemoryNetwork {
    buffer_bytes: usize,
    listeners: Mutex<BTreeMap<String, mpsc::Sender<DuplexStream>>>,
}

impl MemoryNetwork {
    /// A network without listeners.
    pub fn new(buffer_bytes: usize) -> Self {
        Self { buffer_bytes, listeners: Mutex::default() }
    }

    fn listeners(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, mpsc::Sender<DuplexStream>>> {
        self.listeners.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[async_trait]
impl Network for MemoryNetwork {
    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        let (arrivals, accepted) = mpsc::channel(BACKLOG);
        self.listeners().insert(address.to_owned(), arrivals);
        Ok(Box::new(MemoryListener(tokio::sync::Mutex::new(accepted))))
    }

    async fn connect(&self, address: &str) -> io::Result<Box<dyn Connection>> {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let listener = self.listeners().get(address).cloned().ok_or_else(refused)?;
        let (near, far) = tokio::io::duplex(self.buffer_bytes);
        listener.send(far).await.map_err(|_closed| refused())?;
        Ok(Box::new(near))
    }
}

struct MemoryListener(tokio::sync::Mutex<mpsc::Receiver<DuplexStream>>);

#[async_trait]
impl Listener for MemoryListener {
    async fn accept(&self) -> io::Result<(Box<dyn Connection>, SocketAddr)> {
        match self.0.lock().await.recv().await {
            Some(stream) => Ok((Box::new(stream), self.local_addr()?)),
            // the network is gone, and with it everybody who could connect
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }
}
