//! The disks of a node: which it serves, which are out, and why. One bad disk keeps no other waiting.
//!
//! Every directory is opened by a task of its own. One that cannot be opened is out, with its reason; one that takes very
//! long is waited for by nobody but its own shards. What a disk that is out has is *unknown*, never absent (D2): requests
//! for it are refused as the disk's failure, and the cluster is not told that the disk is gone.
//!
//! A disk is what its superblock says, wherever it is mounted. A directory that is known to have held a disk and holds
//! none is not formatted: its file system is not mounted, and whatever was written there would lie under it. Two
//! directories that hold one disk when the node starts are both out: one is a copy, and nothing here tells which. Later the
//! one that is served stays.

use crate::DataNodeError;
use ashlar_store::{Store, StoreError};
use ashlar_types::DiskId;
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The disks that are served. A snapshot: disks come and go.
pub type Stores = Arc<BTreeMap<DiskId, Store>>;

/// How a disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskCondition {
    /// It is being opened.
    Opening,
    /// Read and written.
    Serving,
    /// Read and counted, not written; why.
    Suspect(String),
    /// Not served; why. What it has is unknown.
    Out(String),
}

impl DiskCondition {
    /// Its word in metrics and answers.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Serving => "serving",
            Self::Suspect(_) => "suspect",
            Self::Out(_) => "out",
        }
    }

    /// Why it is not served in full.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Opening | Self::Serving => None,
            Self::Suspect(reason) | Self::Out(reason) => Some(reason),
        }
    }
}

/// A directory, and how its disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskReport {
    /// Where it is.
    pub dir: PathBuf,
    /// Which it is, as far as that is known.
    pub disk: Option<DiskId>,
    /// How it is.
    pub condition: DiskCondition,
}

/// What stands in a directory.
enum Place {
    Opening { known: Option<DiskId> },
    Open(Store),
    Out(Outage),
}

/// Why nothing is served from a directory.
#[derive(Debug, Clone)]
struct Outage {
    known: Option<DiskId>,
    why: String,
    /// Another directory holds the same disk.
    is_copy: bool,
}

impl Place {
    fn out(known: Option<DiskId>, why: String) -> Self {
        Self::Out(Outage { known, why, is_copy: false })
    }

    fn copy(disk: DiskId, why: String) -> Self {
        Self::Out(Outage { known: Some(disk), why, is_copy: true })
    }

    fn disk(&self) -> Option<DiskId> {
        match self {
            Self::Opening { known } => *known,
            Self::Out(outage) => outage.known,
            Self::Open(store) => Some(store.disk_id()),
        }
    }

    fn condition(&self) -> DiskCondition {
        match self {
            Self::Opening { .. } => DiskCondition::Opening,
            Self::Out(outage) => DiskCondition::Out(outage.why.clone()),
            Self::Open(store) => match store.why_suspect() {
                Some(why) => DiskCondition::Suspect(why),
                None => DiskCondition::Serving,
            },
        }
    }
}

/// All of them.
#[derive(Default)]
pub(crate) struct Disks {
    places: Mutex<BTreeMap<PathBuf, Place>>,
    /// From now on what is served was there first.
    is_started: AtomicBool,
    /// What is open, for those who serve; changed with `places`, under its lock.
    served: watch::Sender<Stores>,
    /// How they were when somebody last looked, or something changed.
    reports: watch::Sender<Vec<DiskReport>>,
}

impl Disks {
    fn places(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is served now.
    pub(crate) fn served(&self) -> Stores {
        self.served.borrow().clone()
    }

    /// Follows what is served.
    pub(crate) fn follow_served(&self) -> watch::Receiver<Stores> {
        self.served.subscribe()
    }

    /// Follows how the disks are.
    pub(crate) fn follow(&self) -> watch::Receiver<Vec<DiskReport>> {
        self.reports.subscribe()
    }

    /// How the disks are now, by directory.
    pub(crate) fn report(&self) -> Vec<DiskReport> {
        let report = |(dir, place): (&PathBuf, &Place)| DiskReport {
            dir: dir.clone(),
            disk: place.disk(),
            condition: place.condition(),
        };
        self.places().iter().map(report).collect()
    }

    /// Why a disk that belongs here is not served; `None`: it is, or it does not belong here.
    pub(crate) fn why_out(&self, disk: DiskId) -> Option<String> {
        let places = self.places();
        let place = places.values().find(|place| place.disk() == Some(disk))?;
        match place {
            Place::Opening { .. } => Some("it is still being opened".to_owned()),
            Place::Out(outage) => Some(outage.why.clone()),
            Place::Open(_) => None,
        }
    }

    /// A directory is going to be opened.
    pub(crate) fn announce(&self, dir: &Path, known: Option<DiskId>) -> Result<(), DataNodeError> {
        let mut places = self.places();
        if matches!(places.get(dir), Some(Place::Open(_) | Place::Opening { .. })) {
            return Err(DataNodeError::Twice(dir.to_owned()));
        }
        places.insert(dir.to_owned(), Place::Opening { known });
        Ok(())
    }

    /// A directory has been opened, or cannot be. What is given back is not served and has to be closed.
    pub(crate) fn settle(&self, dir: &Path, opened: Result<Store, StoreError>) -> Vec<Store> {
        let mut places = self.places();
        let known = places.get(dir).and_then(Place::disk);
        let mut unwanted = Vec::new();
        let place = match opened {
            Ok(store) if !matches!(places.get(dir), Some(Place::Opening { .. })) => {
                // nobody waits for it any more
                return vec![store];
            }
            Ok(store) => match self.take_copies(&mut places, dir, &store, &mut unwanted) {
                None => Place::Open(store),
                Some(why) => {
                    let disk = store.disk_id();
                    unwanted.push(store);
                    Place::copy(disk, why)
                }
            },
            Err(error) => Place::out(known, error.to_string()),
        };
        tell(dir, known, &place);
        places.insert(dir.to_owned(), place);
        self.publish(&places);
        unwanted
    }

    /// Takes a disk out of service, and says why; what was served is to be closed.
    pub(crate) fn put_out(&self, disk: DiskId, why: &str) -> Option<Store> {
        let mut places = self.places();
        let is_it = |(_, place): &(&PathBuf, &mut Place)| place.disk() == Some(disk);
        let (dir, place) = places.iter_mut().find(is_it)?;
        tracing::error!(dir = %dir.display(), %disk, why, "a disk is out of service");
        let before = std::mem::replace(place, Place::out(Some(disk), why.to_owned()));
        self.publish(&places);
        match before {
            Place::Open(store) => Some(store),
            Place::Opening { .. } | Place::Out(_) => None,
        }
    }

    /// Forgets a disk, which may go now; what was served is to be closed.
    pub(crate) fn take(&self, disk: DiskId) -> Option<(PathBuf, Option<Store>)> {
        let mut places = self.places();
        let is_it = |(_, place): &(&PathBuf, &Place)| place.disk() == Some(disk);
        let dir = places.iter().find(is_it)?.0.clone();
        let place = places.remove(&dir)?;
        self.publish(&places);
        match place {
            Place::Open(store) => Some((dir, Some(store))),
            Place::Opening { .. } | Place::Out(_) => Some((dir, None)),
        }
    }

    /// Forgets a directory that is out.
    pub(crate) fn forget(&self, dir: &Path) -> Option<String> {
        let mut places = self.places();
        if !matches!(places.get(dir), Some(Place::Out(_))) {
            return None;
        }
        let place = places.remove(dir)?;
        self.publish(&places);
        place.condition().reason().map(str::to_owned)
    }

    /// Nothing is served any more; what was is to be closed.
    pub(crate) fn take_all(&self) -> Vec<Store> {
        let mut places = self.places();
        let all = std::mem::take(&mut *places);
        let open = |place| match place {
            Place::Open(store) => Some(store),
            Place::Opening { .. } | Place::Out(_) => None,
        };
        all.into_values().filter_map(open).collect()
    }

    /// Looks how the disks are; tells who follows, if that has changed.
    pub(crate) fn look(&self) {
        let now = self.report();
        self.reports.send_if_modified(|known| {
            let has_changed = *known != now;
            if has_changed {
                *known = now;
            }
            has_changed
        });
    }

    /// The start has waited for its disks.
    pub(crate) fn start_ended(&self) {
        self.is_started.store(true, Ordering::Relaxed);
        self.look();
    }

    /// Takes whatever holds the same disk out of service, at a start. Why the new one is out too; `None`: it is the only
    /// one.
    fn take_copies(
        &self,
        places: &mut BTreeMap<PathBuf, Place>,
        dir: &Path,
        store: &Store,
        unwanted: &mut Vec<Store>,
    ) -> Option<String> {
        let disk = store.disk_id();
        let is_copy = |place: &Place| match place {
            Place::Open(open) => open.disk_id() == disk,
            Place::Out(outage) => outage.is_copy && outage.known == Some(disk),
            Place::Opening { .. } => false,
        };
        let copies = places.iter_mut().filter(|(other, place)| *other != dir && is_copy(place));
        let mut found = None;
        for (other, place) in copies {
            let why = same_disk(disk, other, dir);
            found = Some(why.clone());
            if self.is_started.load(Ordering::Relaxed) {
                continue;
            }
            let before = std::mem::replace(place, Place::copy(disk, why));
            tell(other, Some(disk), place);
            if let Place::Open(open) = before {
                unwanted.push(open);
            }
        }
        found
    }

    fn publish(&self, places: &BTreeMap<PathBuf, Place>) {
        let open = |place: &Place| match place {
            Place::Open(store) => Some((store.disk_id(), store.clone())),
            Place::Opening { .. } | Place::Out(_) => None,
        };
        self.served.send_replace(Arc::new(places.values().filter_map(open).collect()));
    }

    /// Waits until no directory is being opened any more.
    pub(crate) fn all_settled(self: &Arc<Self>) -> BoxFuture<'static, ()> {
        let disks = Arc::clone(self);
        let mut served = self.served.subscribe();
        let is_opening =
            move || disks.places().values().any(|place| matches!(place, Place::Opening { .. }));
        Box::pin(async move { while is_opening() && served.changed().await.is_ok() {} })
    }
}

fn same_disk(disk: DiskId, first: &Path, second: &Path) -> String {
    let (first, second) = (first.display(), second.display());
    format!("{first} and {second} are the same disk, {disk}: one is a copy; start without it")
}

fn tell(dir: &Path, known: Option<DiskId>, place: &Place) {
    let dir = dir.display();
    match place {
        Place::Out(outage) => {
            let why = &outage.why;
            tracing::error!(%dir, why, "a disk is out of service");
        }
        Place::Open(store) if known.is_some_and(|known| known != store.disk_id()) => {
            let disk = store.disk_id();
            tracing::warn!(%dir, %disk, "another disk than before is in this directory: it is served as what it is");
        }
        Place::Open(_) | Place::Opening { .. } => {}
    }
}
