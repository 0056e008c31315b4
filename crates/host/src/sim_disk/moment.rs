//! Every disk that a power cut may leave, one by one: where [`CutStyle`](super::CutStyle) throws dice once, a test that
//! wants all of them asks here.
//!
//! From [`SimDisk::keep_moments`] on, the disk keeps how it was before each step. Each such moment knows its un-synced
//! pieces: the sectors of writes, pages of holes, lengths and names, of which a cut keeps any set. So a script runs once,
//! and its crash states are made afterwards. Contents are shared until they differ, so that an image is cheap.

use super::{Change, Fate, Inner, SimDisk};
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};

/// A disk just before one of its steps.
pub struct Moment(Inner);

impl std::fmt::Debug for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Moment({} pieces)", self.pieces())
    }
}

/// A fate that somebody else decides, piece by piece.
struct Chosen<F> {
    keeps: F,
    next: usize,
}

impl<F: FnMut(usize) -> bool> Fate for Chosen<F> {
    fn keeps(&mut self) -> bool {
        self.next += 1;
        (self.keeps)(self.next - 1)
    }

    fn splits(&mut self) -> bool {
        true
    }
}

impl SimDisk {
    /// From now on the disk keeps how it was before each step: a change, a sync, a name.
    pub fn keep_moments(&self) {
        self.state().moments = Some(Vec::new());
    }

    /// How many steps were begun since [`SimDisk::keep_moments`]: the number of the moment that is now.
    pub fn steps(&self) -> usize {
        self.state().moments.as_ref().map_or(0, Vec::len)
    }

    /// The moments before all steps since, and the present one; keeps no more of them.
    pub fn take_moments(&self) -> Vec<Moment> {
        let mut inner = self.state();
        let mut moments = inner.moments.take().unwrap_or_default();
        moments.push(Moment::of(&inner));
        moments
    }

    /// A hash of everything that a power cut now would surely leave.
    pub fn fingerprint(&self) -> u64 {
        let inner = self.state();
        let mut hasher = DefaultHasher::new();
        for (name, id) in &inner.durable_names {
            name.hash(&mut hasher);
            let durable = &inner.contents[id].durable;
            durable.bytes.len().hash(&mut hasher);
            hasher.write(&durable.bytes);
            durable.holes.hash(&mut hasher);
        }
        hasher.finish()
    }
}

impl Moment {
    pub(super) fn of(inner: &Inner) -> Self {
        Self(Inner {
            life: inner.life,
            next_file: inner.next_file,
            contents: inner.contents.clone(),
            names: inner.names.clone(),
            durable_names: inner.durable_names.clone(),
            directories: inner.directories.clone(),
            capacity_bytes: inner.capacity_bytes,
            changed: inner.changed,
            ..Inner::default()
        })
    }

    /// How many pieces are not synced.
    pub fn pieces(&self) -> usize {
        let mut counting = Chosen { keeps: |_| false, next: 0 };
        Self::of(&self.0).0.settle(&mut counting);
        counting.next
    }

    /// The disk after a power cut that keeps these pieces.
    pub fn cut(&self, keeps: impl FnMut(usize) -> bool) -> SimDisk {
        let mut inner = Self::of(&self.0).0;
        inner.life += 1;
        inner.settle(&mut Chosen { keeps, next: 0 });
        inner.changed = None;
        SimDisk { inner: Arc::new(Mutex::new(inner)), life: None }
    }

    /// What the step before this moment wrote, if it is not synced.
    pub fn last_write(&self) -> Option<&[u8]> {
        let content = self.0.contents.get(&self.0.changed?)?;
        match content.pending.last()? {
            Change::Write { bytes, .. } => Some(bytes),
            Change::Length(_) | Change::Punch { .. } => None,
        }
    }

    /// The disk after a power cut that keeps everything, but of the last write only the first `count` bytes.
    pub fn cut_in_last_write(&self, count: usize) -> SimDisk {
        let mut inner = Self::of(&self.0).0;
        let changed = inner.changed.and_then(|id| inner.contents.get_mut(&id));
        if let Some(content) = changed {
            content.shorten_last_write(count);
        }
        Self(inner).cut(|_| true)
    }
}

impl super::Content {
    fn shorten_last_write(&mut self, count: usize) {
        if let Some(Change::Write { bytes, .. }) = self.pending.last_mut() {
            bytes.truncate(count);
        }
    }
}

/// Sets of pieces of which a cut keeps one: all of them where there are at most `most`; else none, all, each beginning,
/// each piece lost alone or kept alone as far as that goes, and then what the dice say, `most` together.
pub fn sets_of_pieces(pieces: usize, most: usize, dice: &dyn crate::Random) -> Vec<Vec<bool>> {
    if pieces < usize::BITS as usize && 1 << pieces <= most {
        let kept = |set: usize| (0..pieces).map(|piece| set >> piece & 1 == 1).collect();
        return (0..1 << pieces).map(kept).collect();
    }
    let mut sets = BTreeSet::new();
    let stride = (3 * pieces).div_ceil(most / 2).max(1);
    for at in (0..pieces).step_by(stride) {
        sets.insert((0..pieces).map(|piece| piece < at).collect::<Vec<bool>>());
        sets.insert((0..pieces).map(|piece| piece == at).collect());
        sets.insert((0..pieces).map(|piece| piece != at).collect());
    }
    sets.insert(vec![true; pieces]);
    while sets.len() < most {
        // from nearly nothing to nearly everything
        let share = dice.next_u64() % 9;
        sets.insert((0..pieces).map(|_| dice.next_u64() % 8 < share).collect());
    }
    sets.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Disk, OpenMode, SeededRandom};
    use std::path::Path;

    #[test]
    fn all_that_a_cut_may_leave_is_made_and_no_more() {
        let disk = SimDisk::new();
        let (dir, path) = (Path::new("/d"), Path::new("/d/file"));
        disk.create_dir_all(dir).expect("makes");
        let file = disk.open(path, OpenMode::CreateNew).expect("makes");
        file.write_at(&[1; 1024], 0).expect("writes");
        file.sync_data().expect("syncs");
        disk.sync_dir(dir).expect("syncs");
        disk.keep_moments();
        // two sectors, a blank piece of two, and a length
        file.write_at(&[[2; 1024], [0; 1024]].concat(), 512).expect("writes");
        file.set_len(600).expect("cuts");
        assert_eq!(disk.steps(), 2);
        file.sync_data().expect("syncs");
        let moments = disk.take_moments();
        let pieces: Vec<usize> = moments.iter().map(Moment::pieces).collect();
        assert_eq!(pieces, [0, 3, 4, 0]);
        let mut seen = BTreeSet::new();
        for set in sets_of_pieces(4, 16, &SeededRandom::new(1)) {
            let image = moments[2].cut(|piece| set[piece]);
            let bytes = (&image as &dyn Disk).read(path).expect("reads");
            assert_eq!(bytes.len() == 600, set[3]);
            assert_eq!(bytes[512] == 2, set[0]);
            seen.insert(image.fingerprint());
        }
        // at 600 bytes only the first piece still shows; the others give eight images, of which two are as long as the third
        assert_eq!(seen.len(), 2 + 8);
        assert_eq!((&disk as &dyn Disk).read(path).expect("reads").len(), 600, "it went on");
    }

    #[test]
    fn the_last_write_is_kept_to_any_byte() {
        let disk = SimDisk::new();
        let (dir, path) = (Path::new("/d"), Path::new("/d/file"));
        disk.create_dir_all(dir).expect("makes");
        let file = disk.open(path, OpenMode::CreateNew).expect("makes");
        file.write_at(b"old", 0).expect("writes");
        disk.keep_moments();
        file.write_at(b"new", 0).expect("writes");
        let moments = disk.take_moments();
        assert_eq!(moments[1].last_write(), Some(b"new".as_slice()));
        for (count, left) in [(0, b"old"), (1, b"nld"), (2, b"ned"), (3, b"new")] {
            let image = moments[1].cut_in_last_write(count);
            assert_eq!((&image as &dyn Disk).read(path).expect("reads"), left);
        }
    }

    #[test]
    fn many_pieces_are_sampled_without_repetition() {
        let sets = sets_of_pieces(40, 64, &SeededRandom::new(1));
        assert_eq!(sets.len(), 64);
        assert!(sets.contains(&vec![false; 40]) && sets.contains(&vec![true; 40]));
        assert_eq!(sets_of_pieces(3, 64, &SeededRandom::new(1)).len(), 8);
        assert_eq!(sets_of_pieces(0, 64, &SeededRandom::new(1)), [Vec::<bool>::new()]);
    }
}
