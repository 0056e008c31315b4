//! A switch of our own: every packet between two hosts passes through this process, which may lose, delay, double,
//! damage or hold it, for each direction of each pair by itself.
//!
//! Each host has a TUN device that was made here and then moved into the host's network namespace; its other end stays
//! with this process, so devices are gone when the process is. A thread reads each device; what is late waits in a heap
//! for one thread more. All chances come from one seed. A damaged packet keeps its checksum, so the receiving kernel
//! drops it: what is tested is loss that its sender cannot see.

use anyhow::{Context, Result};
use ashlar_host::{Random, SeededRandom};
use rustix::ioctl::{Opcode, Setter, ioctl};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What one packet may be at most.
pub(crate) const MTU: usize = 9_000;
const TUNSETIFF: Opcode = 0x4004_54ca;
/// IFF_TUN and IFF_NO_PI: bare IP packets.
const FLAGS: u16 = 0x1001;
const NAME_BYTES_MAX: usize = 15;
const REQUEST_BYTES: usize = 40;
/// Packets that may be late at the same time; what comes beyond is lost, as in any switch.
const LATE_MAX: usize = 20_000;

/// What happens on one direction between two hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// Nothing passes.
    pub(crate) is_cut: bool,
    /// Packets of a thousand that are lost.
    pub(crate) loss: u64,
    /// … that come twice.
    pub(crate) double: u64,
    /// … in which a bit is wrong.
    pub(crate) damage: u64,
    /// How late every packet is.
    pub(crate) delay: Duration,
    /// How much later it may be by chance: so packets overtake one another.
    pub(crate) jitter: Duration,
}

/// What happened to packets so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) cut: u64,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) damaged: u64,
    pub(crate) delayed: u64,
}

#[derive(Default)]
struct Counters {
    passed: AtomicU64,
    cut: AtomicU64,
    lost: AtomicU64,
    doubled: AtomicU64,
    damaged: AtomicU64,
    delayed: AtomicU64,
}

/// A packet that is late.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Late {
    due: Instant,
    number: u64,
    to: usize,
    bytes: Vec<u8>,
}

struct Shared {
    wires: Vec<File>,
    links: Mutex<Vec<Trouble>>,
    late: Mutex<BinaryHeap<Reverse<Late>>>,
    is_late: Condvar,
    number: AtomicU64,
    random: SeededRandom,
    counters: Counters,
}

/// The switch. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Switch(Arc<Shared>);

impl Switch {
    /// Makes a device for each name; the caller gives each to its host. Host number n has an address that ends in n + 1.
    pub(crate) fn open(names: &[String], seed: u64) -> Result<Self> {
        let wires = names.iter().map(|name| open_tun(name)).collect::<Result<Vec<_>>>()?;
        let hosts = wires.len();
        let shared = Arc::new(Shared {
            wires,
            links: Mutex::new(vec![Trouble::default(); hosts * hosts]),
            late: Mutex::default(),
            is_late: Condvar::new(),
            number: AtomicU64::new(0),
            random: SeededRandom::new(seed),
            counters: Counters::default(),
        });
        for from in 0..hosts {
            let shared = shared.clone();
            std::thread::spawn(move || shared.carry(from));
        }
        let late = shared.clone();
        std::thread::spawn(move || late.deliver_late());
        Ok(Self(shared))
    }

    /// From now on, on these directions.
    pub(crate) fn trouble(&self, directions: &[(usize, usize)], trouble: Trouble) {
        let hosts = self.0.wires.len();
        let mut links = self.0.links.lock().unwrap_or_else(PoisonError::into_inner);
        for (from, to) in directions {
            links[from * hosts + to] = trouble;
        }
    }

    /// All is well again.
    pub(crate) fn heal(&self) {
        self.0.links.lock().unwrap_or_else(PoisonError::into_inner).fill(Trouble::default());
    }

    /// What happened so far.
    pub(crate) fn counts(&self) -> Counts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.0.counters;
        Counts {
            passed: count(&counters.passed),
            cut: count(&counters.cut),
            lost: count(&counters.lost),
            doubled: count(&counters.doubled),
            damaged: count(&counters.damaged),
            delayed: count(&counters.delayed),
        }
    }
}

impl Shared {
    fn carry(&self, from: usize) {
        let mut buffer = vec![0; MTU + 64];
        // a device that fails is gone with its host's namespace
        while let Ok(length) = (&self.wires[from]).read(&mut buffer) {
            let Some(to) = receiver(&buffer[..length]).filter(|to| *to < self.wires.len()) else {
                continue;
            };
            self.pass(from, to, &mut buffer[..length]);
        }
    }

    fn pass(&self, from: usize, to: usize, packet: &mut [u8]) {
        let trouble =
            self.links.lock().unwrap_or_else(PoisonError::into_inner)[from * self.wires.len() + to];
        let one = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        let happens = |of_thousand: u64| of_thousand > 0 && self.roll(1_000) < of_thousand;
        if trouble.is_cut {
            one(&self.counters.cut);
            return;
        }
        if happens(trouble.loss) {
            one(&self.counters.lost);
            return;
        }
        if happens(trouble.damage) && packet.len() > 40 {
            one(&self.counters.damaged);
            let at = usize::try_from(self.roll(packet.len() as u64 - 40)).unwrap_or_default() + 40;
            packet[at] ^= 1 << self.roll(8);
        }
        if happens(trouble.double) {
            one(&self.counters.doubled);
            self.forward(to, packet, trouble);
        }
        one(&self.counters.passed);
        self.forward(to, packet, trouble);
    }

    fn forward(&self, to: usize, packet: &[u8], trouble: Trouble) {
        let jitter_us = u64::try_from(trouble.jitter.as_micros()).unwrap_or(u64::MAX);
        let jitter = if jitter_us == 0 { 0 } else { self.roll(jitter_us) };
        let wait = trouble.delay + Duration::from_micros(jitter);
        if wait.is_zero() {
            self.hand_over(to, packet);
            return;
        }
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        if late.len() >= LATE_MAX {
            self.counters.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.counters.delayed.fetch_add(1, Ordering::Relaxed);
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        late.push(Reverse(Late { due: Instant::now() + wait, number, to, bytes: packet.to_vec() }));
        drop(late);
        self.is_late.notify_one();
    }

    fn hand_over(&self, to: usize, packet: &[u8]) {
        // a host whose device is down, or whose queue is full, loses it
        drop((&self.wires[to]).write(packet));
    }

    fn deliver_late(&self) {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let now = Instant::now();
            let due = late.peek().map(|Reverse(first)| first.due);
            let wait = match due {
                Some(due) if due <= now => {
                    let Some(Reverse(first)) = late.pop() else { continue };
                    drop(late);
                    self.hand_over(first.to, &first.bytes);
                    late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
                Some(due) => due - now,
                None => Duration::from_secs(1),
            };
            late = self.is_late.wait_timeout(late, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn roll(&self, sides: u64) -> u64 {
        self.random.next_u64() % sides
    }
}

/// The host that a packet of IPv4 is for.
fn receiver(packet: &[u8]) -> Option<usize> {
    let is_ipv4 = packet.first().is_some_and(|first| first >> 4 == 4);
    let last = packet.get(19).filter(|_| is_ipv4)?;
    usize::from(*last).checked_sub(1)
}

#[expect(unsafe_code, reason = "the system call that makes a TUN device has no safe wrapper")]
fn open_tun(name: &str) -> Result<File> {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .context("opening /dev/net/tun")?;
    anyhow::ensure!(name.len() <= NAME_BYTES_MAX, "{name} is too long for a network device");
    let mut request = [0; REQUEST_BYTES];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&FLAGS.to_ne_bytes());
    // SAFETY: the kernel reads an ifreq, which has 40 bytes, behind the pointer that `Setter` passes.
    unsafe { ioctl(&tun, Setter::<TUNSETIFF, [u8; REQUEST_BYTES]>::new(request)) }
        .with_context(|| format!("making the device {name}"))?;
    Ok(tun)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(hosts: usize) -> Shared {
        let null = || OpenOptions::new().write(true).open("/dev/null").unwrap();
        Shared {
            wires: (0..hosts).map(|_| null()).collect(),
            links: Mutex::new(vec![Trouble::default(); hosts * hosts]),
            late: Mutex::default(),
            is_late: Condvar::new(),
            number: AtomicU64::new(0),
            random: SeededRandom::new(1),
            counters: Counters::default(),
        }
    }

    #[test]
    fn trouble_is_of_one_direction() {
        let switch = Switch(Arc::new(shared(3)));
        switch.trouble(&[(0, 1)], Trouble { is_cut: true, ..Trouble::default() });
        let mut packet = [0x45; 100];
        switch.0.pass(0, 1, &mut packet);
        switch.0.pass(1, 0, &mut packet);
        let counts = switch.counts();
        assert_eq!((counts.cut, counts.passed), (1, 1));
        switch.heal();
        switch.0.pass(0, 1, &mut packet);
        assert_eq!(switch.counts().passed, 2);
    }

    #[test]
    fn chances_are_of_a_thousand() {
        let switch = Switch(Arc::new(shared(2)));
        let trouble = Trouble { loss: 100, double: 100, damage: 100, ..Trouble::default() };
        switch.trouble(&[(0, 1)], trouble);
        for _ in 0..10_000 {
            switch.0.pass(0, 1, &mut [0x45; 100]);
        }
        let counts = switch.counts();
        for count in [counts.lost, counts.doubled, counts.damaged] {
            assert!((800..1_200).contains(&count), "{counts:?}");
        }
        assert_eq!(counts.lost + counts.passed, 10_000);
    }

    #[test]
    fn a_packet_names_its_receiver() {
        let mut packet = [0; 40];
        packet[0] = 0x45;
        packet[16..20].copy_from_slice(&[10, 77, 0, 3]);
        assert_eq!(receiver(&packet), Some(2));
        packet[0] = 0x60;
        assert_eq!(receiver(&packet), None, "IPv6");
        assert_eq!(receiver(&packet[..10]), None, "too short");
    }
}
