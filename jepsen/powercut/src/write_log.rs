//! A block device that knows which writes a power cut may take: those that no flush has followed yet.
//!
//! Two sparse files: `current` is what a reader sees, `stable` what no cut can take. A write goes into `current` and
//! into the log; a flush moves the log into `stable`. A cut puts the writes of the log into `stable` whole, in part or
//! not at all, sector by sector, as dice roll it, and then `current` becomes what `stable` is. From the cut until the
//! power is back every write and flush fails, so nothing is acknowledged by mistake.
//!
//! Why beside the file system's own shutdown: that is blind for writes past the page cache into blocks that were
//! written before, such as recycled segments. Here they are lost like all others.

use crate::dice::Dice;
use crate::fuse::Device;
use anyhow::{Context, Result};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What happens to the writes that no flush has followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// All are lost.
    Dropped,
    /// Each is there or not, as the dice say.
    Half,
    /// Each may also be there in part: whole sectors of it.
    Torn,
}

/// What a cut did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Writes that were lost whole.
    pub(crate) dropped: u64,
    /// Writes of which some sectors were lost.
    pub(crate) torn: u64,
    /// Writes that were there although nobody had flushed.
    pub(crate) kept: u64,
}

/// The device. Clones are the same one.
#[derive(Clone)]
pub(crate) struct WriteLog(Arc<Mutex<Inner>>);

struct Inner {
    bytes: u64,
    sector_bytes: usize,
    current: File,
    stable: File,
    log: Vec<(u64, Vec<u8>)>,
    /// What the cut took; none while there is power.
    cut: Option<Taken>,
    ambush: Option<Ambush>,
    forgets_flushes: bool,
}

/// A cut that waits for a write: only so is it sure to come between a write and its flush.
struct Ambush {
    writes: u64,
    fate: Fate,
    dice: Dice,
}

impl WriteLog {
    /// An empty device in a directory.
    pub(crate) fn create(dir: &Path, bytes: u64, sector_bytes: usize) -> Result<Self> {
        let file = |name: &str| -> Result<File> {
            let path = dir.join(name);
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
                .with_context(|| format!("creating {}", path.display()))?;
            file.set_len(bytes)?;
            Ok(file)
        };
        let (current, stable) = (file("current")?, file("stable")?);
        let inner = Inner {
            bytes,
            sector_bytes,
            current,
            stable,
            log: Vec::new(),
            cut: None,
            ambush: None,
            forgets_flushes: false,
        };
        Ok(Self(Arc::new(Mutex::new(inner))))
    }

    /// From now on flushes are answered and forgotten: a disk that lies. What was written before is durable.
    pub(crate) fn forget_flushes(&self) -> io::Result<()> {
        let mut inner = self.lock();
        inner.harden()?;
        inner.forgets_flushes = true;
        Ok(())
    }

    /// The power goes with the write that comes after so many others, if no cut comes before.
    pub(crate) fn cut_at_write(&self, writes: u64, fate: Fate, seed: u64) {
        self.lock().ambush = Some(Ambush { writes, fate, dice: Dice::new(seed) });
    }

    /// The power goes, unless it has gone already; what that took.
    pub(crate) fn cut(&self, fate: Fate, seed: u64) -> io::Result<Taken> {
        let mut inner = self.lock();
        match inner.cut {
            Some(taken) => Ok(taken),
            None => inner.cut(fate, &mut Dice::new(seed)),
        }
    }

    /// The power is back.
    pub(crate) fn revive(&self) {
        let mut inner = self.lock();
        (inner.cut, inner.ambush) = (None, None);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn harden(&mut self) -> io::Result<()> {
        for (offset, bytes) in self.log.drain(..) {
            self.stable.write_all_at(&bytes, offset)?;
        }
        Ok(())
    }

    fn cut(&mut self, fate: Fate, dice: &mut Dice) -> io::Result<Taken> {
        let mut taken = Taken::default();
        let log = std::mem::take(&mut self.log);
        for (offset, bytes) in &log {
            let sectors = bytes.len().div_ceil(self.sector_bytes);
            let kept = kept_sectors(fate, sectors, dice);
            let count = kept.iter().filter(|is_kept| **is_kept).count();
            match count {
                0 => taken.dropped += 1,
                _ if count == sectors => taken.kept += 1,
                _ => taken.torn += 1,
            }
            for (sector, _) in kept.iter().enumerate().filter(|(_, is_kept)| **is_kept) {
                let from = sector * self.sector_bytes;
                let to = bytes.len().min(from + self.sector_bytes);
                self.stable.write_all_at(&bytes[from..to], offset + from as u64)?;
            }
        }
        for (offset, bytes) in &log {
            let mut stable = vec![0; bytes.len()];
            self.stable.read_exact_at(&mut stable, *offset)?;
            self.current.write_all_at(&stable, *offset)?;
        }
        self.cut = Some(taken);
        Ok(taken)
    }
}

/// Which sectors of a write are there after a cut.
fn kept_sectors(fate: Fate, sectors: usize, dice: &mut Dice) -> Vec<bool> {
    match fate {
        Fate::Dropped => vec![false; sectors],
        Fate::Half => vec![dice.one_in(2); sectors],
        Fate::Torn => match dice.roll(4) {
            0 => vec![false; sectors],
            1 => vec![true; sectors],
            2 => {
                let first = dice.pick(sectors + 1);
                (0..sectors).map(|sector| sector < first).collect()
            }
            _ => (0..sectors).map(|_| dice.one_in(2)).collect(),
        },
    }
}

impl Device for WriteLog {
    fn len(&self) -> u64 {
        self.lock().bytes
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.lock().current.read_exact_at(buffer, offset)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut inner = self.lock();
        inner.powered()?;
        inner.current.write_all_at(bytes, offset)?;
        inner.log.push((offset, bytes.to_vec()));
        inner.spring()
    }

    fn flush(&self) -> io::Result<()> {
        let mut inner = self.lock();
        inner.powered()?;
        if inner.forgets_flushes { Ok(()) } else { inner.harden() }
    }
}

impl Inner {
    /// The ambush, if its write has come.
    fn spring(&mut self) -> io::Result<()> {
        let Some(ambush) = &mut self.ambush else { return Ok(()) };
        if ambush.writes > 0 {
            ambush.writes -= 1;
            return Ok(());
        }
        if let Some(Ambush { fate, mut dice, .. }) = self.ambush.take() {
            self.cut(fate, &mut dice)?;
        }
        Ok(())
    }

    fn powered(&self) -> io::Result<()> {
        if self.cut.is_some() { Err(io::Error::other("the power is out")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTOR: usize = 512;

    fn device() -> (tempfile::TempDir, WriteLog) {
        let dir = tempfile::tempdir().unwrap();
        let device = WriteLog::create(dir.path(), 1 << 20, SECTOR).unwrap();
        (dir, device)
    }

    fn byte_at(device: &WriteLog, offset: u64) -> u8 {
        let mut byte = [0];
        device.read(&mut byte, offset).unwrap();
        byte[0]
    }

    #[test]
    fn a_cut_takes_what_was_not_flushed_and_nothing_else() {
        let (_dir, device) = device();
        device.write(&[1; 4096], 0).unwrap();
        device.flush().unwrap();
        device.write(&[2; 4096], 0).unwrap();
        device.write(&[2; 4096], 8192).unwrap();
        assert_eq!(byte_at(&device, 0), 2);
        let taken = device.cut(Fate::Dropped, 1).unwrap();
        assert_eq!(taken, Taken { dropped: 2, torn: 0, kept: 0 });
        assert!(device.flush().is_err() && device.write(&[3], 0).is_err(), "the power is out");
        device.revive();
        assert_eq!((byte_at(&device, 0), byte_at(&device, 8192)), (1, 0));
    }

    #[test]
    fn a_torn_write_is_torn_between_sectors() {
        let (_dir, device) = device();
        let mut torn = 0;
        for seed in 0..64 {
            device.write(&[0; 8 * SECTOR], 0).unwrap();
            device.flush().unwrap();
            device.write(&[7; 8 * SECTOR], 0).unwrap();
            torn += device.cut(Fate::Torn, seed).unwrap().torn;
            device.revive();
            for sector in 0..8 {
                let mut bytes = [0; SECTOR];
                device.read(&mut bytes, (sector * SECTOR) as u64).unwrap();
                assert!(bytes == [0; SECTOR] || bytes == [7; SECTOR], "within sector {sector}");
            }
        }
        assert!(torn > 16, "{torn} of 64 were torn");
    }

    #[test]
    fn an_ambush_comes_between_a_write_and_its_flush() {
        let (_dir, device) = device();
        device.cut_at_write(1, Fate::Dropped, 1);
        device.write(&[1], 0).unwrap();
        device.flush().unwrap();
        device.write(&[2], 0).unwrap();
        assert!(device.flush().is_err(), "the power is out");
        assert_eq!(device.cut(Fate::Half, 1).unwrap(), Taken { dropped: 1, torn: 0, kept: 0 });
        device.revive();
        assert_eq!(byte_at(&device, 0), 1);
        device.write(&[3], 0).unwrap();
        device.flush().unwrap();
    }

    #[test]
    fn a_disk_that_lies_loses_what_it_said_was_flushed() {
        let (_dir, device) = device();
        device.write(&[1], 0).unwrap();
        device.forget_flushes().unwrap();
        device.write(&[2], 0).unwrap();
        device.flush().unwrap();
        assert_eq!(device.cut(Fate::Dropped, 1).unwrap().dropped, 1);
        assert_eq!(byte_at(&device, 0), 1);
    }
}
