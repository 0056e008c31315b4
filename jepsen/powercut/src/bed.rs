//! A file system whose power can be cut: an image, a loop device, a mount.

use crate::dice::Dice;
use crate::fuse;
use crate::write_log::{Fate, Taken, WriteLog};
use anyhow::{Context, Result};
use ashlar_powercut::machine::{attach, detach, run, shut_down, umount};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Room for what a victim leaves alive, several times; XFS does not go below 300 MiB.
const IMAGE_BYTES: u64 = 512 << 20;

/// A victim makes some thousand writes a second.
const AMBUSH_WRITES_MAX: u64 = 400;

/// A kind of file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// ext4, on sectors of 512 bytes.
    Ext4,
    /// XFS, on sectors of 4 KiB: it relies on the device writing each of them whole.
    Xfs,
}

/// How the power is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Means {
    /// The file system's own shutdown. Blind for writes past the page cache into written blocks.
    Shutdown,
    /// A device that drops, halves or tears what was not flushed.
    WriteLog,
}

/// A mounted file system.
pub(crate) struct Bed {
    kind: Kind,
    means: Means,
    image: PathBuf,
    mount: PathBuf,
    device: PathBuf,
    log: Option<WriteLog>,
}

impl Kind {
    fn sector_bytes(self) -> usize {
        match self {
            Self::Ext4 => 512,
            Self::Xfs => 4096,
        }
    }

    fn make(self, device: &Path) -> Result<()> {
        let mut command = match self {
            Self::Ext4 => Command::new("mkfs.ext4"),
            Self::Xfs => Command::new("mkfs.xfs"),
        };
        match self {
            // a small journal wraps around within a run
            Self::Ext4 => command.args(["-q", "-F", "-E", "nodiscard", "-J", "size=16"]),
            Self::Xfs => command.args(["-q", "-f", "-K"]),
        };
        run(command.arg(device)).map(drop)
    }
}

impl Bed {
    /// Makes the file system, and the directories in which victims work.
    pub(crate) fn make(dir: &Path, kind: Kind, means: Means) -> Result<Self> {
        let (mount, fuse_dir) = (dir.join("mount"), dir.join("fuse"));
        std::fs::create_dir_all(&mount)?;
        let (image, log) = match means {
            Means::Shutdown => {
                let image = dir.join("image");
                File::create(&image)?.set_len(IMAGE_BYTES)?;
                (image, None)
            }
            Means::WriteLog => {
                std::fs::create_dir_all(&fuse_dir)?;
                let log = WriteLog::create(dir, IMAGE_BYTES, kind.sector_bytes())?;
                // ends by itself when it is unmounted
                let _server = fuse::mount(&fuse_dir, log.clone())?;
                (fuse_dir.join("image"), Some(log))
            }
        };
        let device = attach(&image, kind.sector_bytes())?;
        kind.make(&device)?;
        let bed = Self { kind, means, image, mount, device, log };
        bed.mount()?;
        for engine in ["store", "wal"] {
            std::fs::create_dir(bed.mount.join(engine))?;
        }
        run(Command::new("sync").arg("--file-system").arg(&bed.mount))?;
        Ok(bed)
    }

    /// What it is, in a few words.
    pub(crate) fn name(&self) -> String {
        let means = match self.means {
            Means::Shutdown => "shutdown",
            Means::WriteLog => "write log",
        };
        format!("{:?} by {means}", self.kind).to_lowercase()
    }

    /// How its power is cut.
    pub(crate) fn means(&self) -> Means {
        self.means
    }

    /// Where victims work.
    pub(crate) fn dir(&self) -> &Path {
        &self.mount
    }

    /// The disk lies from now on.
    pub(crate) fn forget_flushes(&self) -> Result<()> {
        self.log.as_ref().context("only a write log can lie")?.forget_flushes()?;
        Ok(())
    }

    /// The power may go with any of the next writes; only a write log can do that.
    pub(crate) fn lie_in_wait(&self, fate: Fate, dice: &mut Dice) {
        if let Some(log) = &self.log {
            log.cut_at_write(dice.roll(AMBUSH_WRITES_MAX), fate, dice.roll(u64::MAX));
        }
    }

    /// The power goes, unless it has gone already. From now on nothing can be made durable.
    pub(crate) fn cut(&self, fate: Fate, dice: &mut Dice) -> Result<Taken> {
        match &self.log {
            None => shut_down(&self.mount).map(|()| Taken::default()),
            Some(log) => Ok(log.cut(fate, dice.roll(u64::MAX))?),
        }
    }

    /// The power is back; whoever worked here is gone.
    pub(crate) fn come_back(&mut self) -> Result<()> {
        umount(&self.mount)?;
        // a new device: nothing of the old one's cache may survive
        detach(&self.device)?;
        if let Some(log) = &self.log {
            log.revive();
        }
        self.device = attach(&self.image, self.kind.sector_bytes())?;
        self.mount()
    }

    fn mount(&self) -> Result<()> {
        run(Command::new("mount").arg(&self.device).arg(&self.mount)).map(drop)
    }
}
