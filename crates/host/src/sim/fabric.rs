//! The network of a simulation: streams between machines, and what happens to them.
//!
//! TCP as its users see it: bytes arrive in order or the connection breaks. So a lost packet is a stall, and now and then
//! a break; a partition either holds what is sent until it heals ([`Passage::Held`]) or answers that there is no way
//! ([`Passage::Refused`]), each direction of each pair by itself.

use super::pipe::{PIPE_BYTES_MAX, Pipe};
use crate::network::{Connection, Listener, Network};
use crate::random::{Random, SeededRandom};
use async_trait::async_trait;
use bytes::{Buf, Bytes};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, Sleep};

/// Connections that wait to be accepted.
const BACKLOG: usize = 128;
const FIRST_EPHEMERAL_PORT: u16 = 40_000;
/// Below so many remembered pipes nobody looks for those that are gone.
const PIPES_MIN: usize = 256;
/// A lost packet is sent again after up to so long; likewise what a partition held when it heals.
const RETRANSMIT_MS_MAX: u64 = 400;

/// Whether bytes get from one machine to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Passage {
    /// They do.
    #[default]
    Open,
    /// They wait, and so do connects: a switch that drops everything.
    Held,
    /// Connections break and connects are refused at once: a firewall that rejects.
    Refused,
}

/// What the network is like where nothing is partitioned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weather {
    /// One way, at least.
    pub latency: Duration,
    /// And up to so much more.
    pub jitter: Duration,
    /// Of one connection.
    pub bytes_per_ms: u64,
    /// So many of a million sends are lost once, and come late.
    pub lost_per_million: u32,
    /// So many of a million sends break their connection.
    pub broken_per_million: u32,
}

impl Default for Weather {
    /// A machine room: half a millisecond, a gigabit.
    fn default() -> Self {
        Self {
            latency: Duration::from_micros(300),
            jitter: Duration::from_micros(400),
            bytes_per_ms: 125_000,
            lost_per_million: 0,
            broken_per_million: 0,
        }
    }
}

/// Why a machine is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absence {
    /// Its kernel lives, and says so.
    Killed,
    /// It says nothing.
    Dark,
}

/// The network. A clone is the same one.
#[derive(Clone)]
pub struct Fabric(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// A passage has changed, or a machine has come or gone.
    changed: Notify,
}

struct State {
    random: SeededRandom,
    weather: Weather,
    passages: BTreeMap<(IpAddr, IpAddr), Passage>,
    absent: BTreeMap<IpAddr, Absence>,
    listeners: BTreeMap<SocketAddr, (u64, mpsc::Sender<Arrival>)>,
    pipes: Vec<Weak<Pipe>>,
    prune_at: usize,
    next_listener: u64,
    next_port: u16,
    sends: u64,
    /// Machines whose end nobody shall hear of.
    silent: BTreeSet<IpAddr>,
}

struct Arrival {
    stream: SimStream,
    from: SocketAddr,
}

impl std::fmt::Debug for Fabric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fabric")
    }
}

impl Fabric {
    /// A network whose delays come from `seed`.
    pub fn new(seed: u64, weather: Weather) -> Self {
        let state = State {
            random: SeededRandom::new(seed),
            weather,
            passages: BTreeMap::new(),
            absent: BTreeMap::new(),
            listeners: BTreeMap::new(),
            pipes: Vec::new(),
            prune_at: PIPES_MIN,
            next_listener: 0,
            next_port: FIRST_EPHEMERAL_PORT,
            sends: 0,
            silent: BTreeSet::new(),
        };
        Self(Arc::new(Inner { state: Mutex::new(state), changed: Notify::new() }))
    }

    /// From now on it is like this.
    pub fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }

    /// Sets one direction of a pair.
    pub fn set_passage(&self, from: IpAddr, to: IpAddr, passage: Passage) {
        let mut state = self.state();
        let before = state.passages.insert((from, to), passage).unwrap_or_default();
        if before == passage {
            return;
        }
        let late = Instant::now() + state.draw_ms(RETRANSMIT_MS_MAX);
        for pipe in state.live_pipes() {
            let connects = (pipe.from, pipe.to) == (from, to) || (pipe.to, pipe.from) == (from, to);
            let carries = (pipe.from, pipe.to) == (from, to);
            match passage {
                // no connection lives without both of its directions
                Passage::Refused if connects => pipe.state().reset(),
                Passage::Held if carries => pipe.state().is_held = true,
                Passage::Open if carries => pipe.state().release(late),
                Passage::Open | Passage::Held | Passage::Refused => {}
            }
        }
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// All passages are open.
    pub fn heal(&self) {
        let closed: Vec<(IpAddr, IpAddr)> = self.state().passages.keys().copied().collect();
        for (from, to) in closed {
            self.set_passage(from, to, Passage::Open);
        }
    }

    /// How often something was sent.
    pub fn sends(&self) -> u64 {
        self.state().sends
    }

    /// A machine is there (again): what was connected to its last life breaks.
    pub(super) fn appear(&self, address: IpAddr) {
        let mut state = self.state();
        if state.absent.remove(&address).is_some() {
            state.silent.remove(&address);
            for pipe in state.live_pipes().filter(|pipe| pipe.touches(address)) {
                pipe.state().reset();
            }
        }
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// A machine's process ends. To be called before its tasks are dropped.
    pub(super) fn vanish(&self, address: IpAddr, why: Absence) {
        let mut state = self.state();
        state.absent.insert(address, why);
        state.listeners.retain(|at, _| at.ip() != address);
        if why == Absence::Dark {
            state.silent.insert(address);
        }
        for pipe in state.live_pipes().filter(|pipe| pipe.touches(address)) {
            match why {
                Absence::Killed => pipe.state().reset(),
                Absence::Dark => pipe.state().is_held = true,
            }
        }
        drop(state);
        self.0.changed.notify_waiters();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a connect from one machine to another gets an answer: where its listener is.
    async fn reach(&self, from: IpAddr, to: SocketAddr) -> io::Result<mpsc::Sender<Arrival>> {
        loop {
            // listens before it looks
            let changed = self.0.changed.notified();
            let answer = self.state().answer(from, to);
            match answer {
                Some(answer) => return answer,
                None => changed.await,
            }
        }
    }

    fn pair(&self, from: SocketAddr, to: SocketAddr) -> (SimStream, SimStream) {
        let there = Arc::new(Pipe::new(from.ip(), to.ip()));
        let back = Arc::new(Pipe::new(to.ip(), from.ip()));
        let mut state = self.state();
        state.remember(&there);
        state.remember(&back);
        drop(state);
        let near = SimStream::new(self.clone(), there.clone(), back.clone());
        (near, SimStream::new(self.clone(), back, there))
    }
}

impl State {
    fn passage(&self, from: IpAddr, to: IpAddr) -> Passage {
        self.passages.get(&(from, to)).copied().unwrap_or_default()
    }

    /// What a connect is told; `None`: nothing yet.
    fn answer(&self, from: IpAddr, to: SocketAddr) -> Option<io::Result<mpsc::Sender<Arrival>>> {
        let refused = || Some(Err(io::ErrorKind::ConnectionRefused.into()));
        match (self.passage(from, to.ip()), self.passage(to.ip(), from)) {
            (Passage::Held, _) | (_, Passage::Held) => return None,
            (Passage::Refused, _) | (_, Passage::Refused) => return refused(),
            (Passage::Open, Passage::Open) => {}
        }
        match (self.listeners.get(&to), self.absent.get(&to.ip())) {
            (_, Some(Absence::Dark)) => None,
            (Some((_, arrivals)), None) => Some(Ok(arrivals.clone())),
            (None, _) | (_, Some(Absence::Killed)) => refused(),
        }
    }

    fn live_pipes(&self) -> impl Iterator<Item = Arc<Pipe>> {
        self.pipes.iter().filter_map(Weak::upgrade)
    }

    fn remember(&mut self, pipe: &Arc<Pipe>) {
        pipe.state().is_held = self.passage(pipe.from, pipe.to) == Passage::Held;
        self.pipes.push(Arc::downgrade(pipe));
        if self.pipes.len() > self.prune_at {
            self.pipes.retain(|pipe| pipe.strong_count() > 0);
            self.prune_at = (2 * self.pipes.len()).max(PIPES_MIN);
        }
    }

    fn draw(&self, below: u64) -> u64 {
        if below == 0 { 0 } else { self.random.next_u64() % below }
    }

    fn draw_ms(&self, max: u64) -> Duration {
        Duration::from_millis(self.draw(max))
    }

    fn latency(&self) -> Duration {
        let jitter = u64::try_from(self.weather.jitter.as_micros()).unwrap_or(u64::MAX);
        self.weather.latency + Duration::from_micros(self.draw(jitter))
    }

    /// The fate of a send: how late it comes, or that it breaks its connection.
    fn fate(&mut self, bytes: usize) -> Option<Duration> {
        self.sends += 1;
        let (lost, broken) = (self.weather.lost_per_million, self.weather.broken_per_million);
        let drawn = if lost + broken == 0 { u64::MAX } else { self.draw(1_000_000) };
        if drawn < u64::from(broken) {
            return None;
        }
        let is_lost = drawn < u64::from(broken) + u64::from(lost);
        let late = if is_lost { self.draw_ms(RETRANSMIT_MS_MAX) } else { Duration::ZERO };
        let on_wire =
            Duration::from_micros(bytes as u64 * 1_000 / self.weather.bytes_per_ms.max(1));
        Some(self.latency() + late + on_wire)
    }
}

/// One machine's sockets.
pub(super) struct SimNetwork {
    fabric: Fabric,
    address: IpAddr,
}

impl SimNetwork {
    pub(super) fn new(fabric: Fabric, address: IpAddr) -> Self {
        Self { fabric, address }
    }
}

fn parse(address: &str) -> io::Result<SocketAddr> {
    address.parse().map_err(|_| io::Error::other(format!("'{address}' is no address and port")))
}

#[async_trait]
impl Network for SimNetwork {
    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        let mut at = parse(address)?;
        let mut state = self.fabric.state();
        if at.port() == 0 {
            at.set_port(state.take_port());
        }
        if at.ip() != self.address {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        if state.listeners.contains_key(&at) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let (arrivals, accepted) = mpsc::channel(BACKLOG);
        state.next_listener += 1;
        let id = state.next_listener;
        state.listeners.insert(at, (id, arrivals));
        let accepted = tokio::sync::Mutex::new(accepted);
        Ok(Box::new(SimListener { fabric: self.fabric.clone(), at, id, accepted }))
    }

    async fn connect(&self, address: &str) -> io::Result<Box<dyn Connection>> {
        let to = parse(address)?;
        let reached = self.fabric.reach(self.address, to).await;
        let (from, round_trip) = {
            let mut state = self.fabric.state();
            (SocketAddr::new(self.address, state.take_port()), state.latency() + state.latency())
        };
        tokio::time::sleep(round_trip).await;
        let (near, far) = self.fabric.pair(from, to);
        let arrival = Arrival { stream: far, from };
        let refused = |_closed| io::Error::from(io::ErrorKind::ConnectionRefused);
        reached?.send(arrival).await.map_err(refused)?;
        Ok(Box::new(near))
    }
}

impl State {
    fn take_port(&mut self) -> u16 {
        self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_EPHEMERAL_PORT);
        self.next_port
    }
}

struct SimListener {
    fabric: Fabric,
    at: SocketAddr,
    id: u64,
    accepted: tokio::sync::Mutex<mpsc::Receiver<Arrival>>,
}

#[async_trait]
impl Listener for SimListener {
    async fn accept(&self) -> io::Result<(Box<dyn Connection>, SocketAddr)> {
        match self.accepted.lock().await.recv().await {
            Some(Arrival { stream, from }) => Ok((Box::new(stream), from)),
            // the machine is down, and its tasks are about to be dropped
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.at)
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        let mut state = self.fabric.state();
        if state.listeners.get(&self.at).is_some_and(|(id, _)| *id == self.id) {
            state.listeners.remove(&self.at);
        }
    }
}

/// One end of a connection.
struct SimStream {
    fabric: Fabric,
    out: Arc<Pipe>,
    incoming: Arc<Pipe>,
    arrival: Option<Pin<Box<Sleep>>>,
}

impl SimStream {
    fn new(fabric: Fabric, out: Arc<Pipe>, incoming: Arc<Pipe>) -> Self {
        Self { fabric, out, incoming, arrival: None }
    }

    /// Waits for `at`; `true`: it is there.
    fn poll_arrival(&mut self, at: Instant, cx: &mut Context<'_>) -> bool {
        if at <= Instant::now() {
            return true;
        }
        let sleep = self.arrival.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if sleep.deadline() != at {
            sleep.as_mut().reset(at);
        }
        sleep.as_mut().poll(cx).is_ready()
    }

    fn finish(&self) {
        let mut out = self.out.state();
        if out.end.is_none() {
            let late = self.fabric.state().latency();
            out.end = Some(out.last_arrival.max(Instant::now() + late));
            out.reader.take().into_iter().for_each(std::task::Waker::wake);
        }
    }
}

fn broken() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl AsyncRead for SimStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        let incoming = Arc::clone(&stream.incoming);
        let mut state = incoming.state();
        if state.is_reset {
            return Poll::Ready(Err(broken()));
        }
        state.reader = Some(cx.waker().clone());
        let next = state.chunks.front().map(|(at, _)| *at).or(state.end);
        let Some(at) = next.filter(|_| !state.is_held) else { return Poll::Pending };
        if !stream.poll_arrival(at, cx) {
            return Poll::Pending;
        }
        state.reader = None;
        if let Some((_, bytes)) = state.chunks.front_mut() {
            let count = bytes.len().min(buffer.remaining());
            buffer.put_slice(&bytes[..count]);
            bytes.advance(count);
            if bytes.is_empty() {
                state.chunks.pop_front();
            }
            state.queued_bytes -= count;
            state.writer.take().into_iter().for_each(std::task::Waker::wake);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        let mut state = stream.out.state();
        if state.is_reset || state.deaf {
            return Poll::Ready(Err(broken()));
        }
        let room = PIPE_BYTES_MAX.saturating_sub(state.queued_bytes);
        if room == 0 {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = bytes.len().min(room);
        let fate = stream.fabric.state().fate(count);
        let Some(late) = fate else {
            state.reset();
            drop(state);
            stream.incoming.state().reset();
            return Poll::Ready(Err(broken()));
        };
        let at = state.last_arrival.max(Instant::now() + late);
        state.last_arrival = at;
        state.queued_bytes += count;
        state.chunks.push_back((at, Bytes::copy_from_slice(&bytes[..count])));
        state.reader.take().into_iter().for_each(std::task::Waker::wake);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        // a machine without power says nothing when its tasks are dropped
        if self.fabric.state().silent.contains(&self.out.from) {
            return;
        }
        self.finish();
        let mut incoming = self.incoming.state();
        incoming.deaf = true;
        incoming.wake_both();
    }
}
