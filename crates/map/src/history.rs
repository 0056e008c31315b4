//! A node's local history, in sled: what the node may lose, and what nobody else needs.
//!
//! The main series of the last 24 hours in steps of a minute, and a bounded log of events. It is written without
//! waiting for the disk: after a power cut the last moments may be missing, or all of it, and then it begins anew.
//!
//! | tree | key | value |
//! |---|---|---|
//! | `series` | name, 0x00, minute since 1970 (u64, big endian) | f64, little endian |
//! | `events` | milliseconds since 1970 (u64, big endian), counter (u64, big endian) | kind, 0x00, text |

use ashlar_catalog::MapError;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How far back the series reach.
const MINUTES_KEPT: u64 = 24 * 60;
/// How many events are kept.
const EVENTS_MAX: usize = 10_000;
/// It is small: sled's default cache of 1 GiB would be the largest thing in the node.
const CACHE_BYTES: u64 = 4 << 20;
const MILLISECONDS_A_MINUTE: u64 = 60_000;

/// A point of a series: minute since 1970, and the value.
pub type Point = (u64, f64);

/// An event of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Which kind.
    pub kind: String,
    /// What happened.
    pub text: String,
}

/// The history of one node. Cheap to clone.
#[derive(Clone)]
pub struct History {
    series: sled::Tree,
    events: sled::Tree,
    counter: Arc<AtomicU64>,
}

impl std::fmt::Debug for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("History")
    }
}

fn failed(error: &sled::Error) -> MapError {
    MapError(format!("history: {error}"))
}

impl History {
    /// Opens it, or makes an empty one. Blocking.
    pub fn open(dir: &Path) -> Result<Self, MapError> {
        let open = || -> Result<Self, sled::Error> {
            let config = sled::Config::new()
                .path(dir)
                .cache_capacity(CACHE_BYTES)
                .flush_every_ms(Some(5_000));
            let db = config.open()?;
            let (series, events) = (db.open_tree("series")?, db.open_tree("events")?);
            Ok(Self { series, events, counter: Arc::default() })
        };
        open().map_err(|error| failed(&error))
    }

    /// Keeps a value of a series for the minute in which it was seen, and forgets what is older than a day.
    pub fn record(&self, name: &str, at_ms: u64, value: f64) -> Result<(), MapError> {
        let minute = at_ms / MILLISECONDS_A_MINUTE;
        let keep = || -> Result<(), sled::Error> {
            self.series.insert(point_key(name, minute), &value.to_le_bytes())?;
            let (oldest, bound) =
                (point_key(name, 0), point_key(name, minute.saturating_sub(MINUTES_KEPT)));
            for old in self.series.range(oldest..bound) {
                self.series.remove(old?.0)?;
            }
            Ok(())
        };
        keep().map_err(|error| failed(&error))
    }

    /// The points of a series from one moment to another, both in milliseconds since 1970.
    pub fn series(&self, name: &str, from_ms: u64, to_ms: u64) -> Result<Vec<Point>, MapError> {
        let from = point_key(name, from_ms / MILLISECONDS_A_MINUTE);
        let to = point_key(name, to_ms / MILLISECONDS_A_MINUTE);
        let point = |row: Result<(sled::IVec, sled::IVec), sled::Error>| {
            let (key, value) = row.map_err(|error| failed(&error))?;
            let minute = key
                .rsplit_array_u64()
                .ok_or_else(|| MapError("history: a key is damaged".to_owned()))?;
            let bytes: [u8; 8] = value
                .as_ref()
                .try_into()
                .map_err(|_| MapError("history: a value is damaged".to_owned()))?;
            Ok((minute, f64::from_le_bytes(bytes)))
        };
        self.series.range(from..=to).map(point).collect()
    }

    /// Keeps an event, and forgets the oldest beyond the bound.
    pub fn event(&self, at_ms: u64, kind: &str, text: &str) -> Result<(), MapError> {
        let mut key = at_ms.to_be_bytes().to_vec();
        key.extend(self.counter.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        let keep = || -> Result<(), sled::Error> {
            self.events.insert(key, [kind.as_bytes(), &[0], text.as_bytes()].concat())?;
            if self.events.len() > EVENTS_MAX {
                self.events.pop_min()?;
            }
            Ok(())
        };
        keep().map_err(|error| failed(&error))
    }

    /// The newest events, newest first.
    pub fn events(&self, limit: usize) -> Result<Vec<Event>, MapError> {
        let event = |row: Result<(sled::IVec, sled::IVec), sled::Error>| {
            let (key, value) = row.map_err(|error| failed(&error))?;
            let damaged = || MapError("history: an event is damaged".to_owned());
            let at: [u8; 8] =
                key.get(..8).and_then(|head| head.try_into().ok()).ok_or_else(damaged)?;
            let text = String::from_utf8(value.to_vec()).map_err(|_| damaged())?;
            let (kind, text) = text.split_once('\0').ok_or_else(damaged)?;
            Ok(Event {
                at_ms: u64::from_be_bytes(at),
                kind: kind.to_owned(),
                text: text.to_owned(),
            })
        };
        self.events.iter().rev().take(limit).map(event).collect()
    }
}

fn point_key(name: &str, minute: u64) -> Vec<u8> {
    [name.as_bytes(), &[0], &minute.to_be_bytes()].concat()
}

trait LastU64 {
    /// The number in the last eight bytes.
    fn rsplit_array_u64(&self) -> Option<u64>;
}

impl LastU64 for sled::IVec {
    fn rsplit_array_u64(&self) -> Option<u64> {
        let tail = self.len().checked_sub(8).map(|start| &self[start..])?;
        tail.try_into().ok().map(u64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_keep_a_day_and_survive_a_clean_reopen() {
        let dir = tempfile::tempdir().expect("makes");
        let minute = |count: u64| count * MILLISECONDS_A_MINUTE;
        {
            let history = History::open(dir.path()).expect("opens");
            for count in [1_u32, 2, 2000, 3000] {
                history.record("put", minute(count.into()), count.into()).expect("keeps");
            }
            history.record("puts", minute(3000), 7.0).expect("keeps");
        }
        let history = History::open(dir.path()).expect("opens again");
        let points = history.series("put", 0, minute(9000)).expect("reads");
        assert_eq!(
            points,
            [(2000, 2000.0), (3000, 3000.0)],
            "older than a day is gone, other names are apart"
        );
    }

    #[test]
    fn events_come_newest_first() {
        let dir = tempfile::tempdir().expect("makes");
        let history = History::open(dir.path()).expect("opens");
        history.event(5, "start", "booted").expect("keeps");
        history.event(5, "fault", "disk").expect("keeps");
        let kinds: Vec<String> =
            history.events(10).expect("reads").into_iter().map(|event| event.kind).collect();
        assert_eq!(kinds, ["fault", "start"]);
        assert_eq!(history.events(1).expect("reads").len(), 1);
    }
}
