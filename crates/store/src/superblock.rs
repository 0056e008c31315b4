//! Reading and writing `ashlar.super`: two pages, of which the one with the lower sequence is overwritten.

use crate::StoreError;
use crate::format::{FORMAT, PAGE, Page, SuperPage, Superblock};
use ashlar_host::{Disk, File, OpenMode};
use std::io;
use std::path::{Path, PathBuf};

/// The name of the file.
pub(crate) const SUPER_NAME: &str = "ashlar.super";

/// The superblock of an open disk.
pub(crate) struct SuperFile {
    path: PathBuf,
    file: Box<dyn File>,
    now: Superblock,
}

impl SuperFile {
    /// Writes the first superblock of a disk.
    pub(crate) fn format(
        disk: &(dyn Disk + 'static),
        dir: &Path,
        first: &Superblock,
    ) -> Result<(), StoreError> {
        let path = dir.join(SUPER_NAME);
        let pages = [first.encode(), first.encode()].concat();
        disk.replace(&path, &pages).map_err(|e| StoreError::writing("write", &path, dir, &e))
    }

    /// Reads the superblock of a disk that has one.
    pub(crate) fn open(disk: &dyn Disk, dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(SUPER_NAME);
        let file = disk
            .open(&path, OpenMode::ReadWrite)
            .map_err(|e| StoreError::writing("open", &path, dir, &e))?;
        let mut newest: Option<Superblock> = None;
        for at in [0, PAGE] {
            let mut page: Page = [0; 4096];
            match file.read_exact_at(&mut page, at) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => continue,
                Err(e) => return Err(StoreError::io("read", &path, &e)),
            }
            match Superblock::decode(&page) {
                SuperPage::Good(found) if newest.is_none_or(|n| n.sequence < found.sequence) => {
                    newest = Some(found);
                }
                SuperPage::Newer(found) => {
                    return Err(StoreError::NewerFormat {
                        dir: dir.to_owned(),
                        found,
                        known: FORMAT,
                    });
                }
                SuperPage::Good(_) | SuperPage::Damaged => {}
            }
        }
        let now = newest.ok_or_else(|| StoreError::BadSuperblock(dir.to_owned()))?;
        Ok(Self { path, file, now })
    }

    /// What it says.
    pub(crate) fn now(&self) -> Superblock {
        self.now
    }

    /// Changes it durably.
    pub(crate) fn update(
        &mut self,
        change: impl FnOnce(&mut Superblock),
    ) -> Result<(), StoreError> {
        let mut next = self.now;
        change(&mut next);
        next.sequence = self.now.sequence + 1;
        let at = (next.sequence % 2) * PAGE;
        self.file
            .write_at(&next.encode(), at)
            .and_then(|()| self.file.sync_data())
            .map_err(|e| StoreError::io("write", &self.path, &e))?;
        self.now = next;
        Ok(())
    }
}
