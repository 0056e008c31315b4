//! The log of a group: openraft's log storage over the WAL that all groups of the node share.
//!
//! An append is readable when it returns and acknowledged after the WAL's fdatasync. The committed id is no write of
//! its own, which would double the syncs of a PUT: it rides in front of the next append, in the same batch. That is
//! enough, because a leader serves nothing before an entry of its own term is committed and applied (R7).

use crate::codec::{log_id_bytes, payload_bytes, read_entry, read_log_id, read_vote, vote_bytes};
use crate::raft::{
    APPEND_ENTRIES_MAX, Entry, IOFlushed, LogId, LogState, OptionalSend, RaftLogReader,
    RaftLogStorage, Types, Vote, log_id,
};
use ashlar_host::{Clock, Monotonic};
use ashlar_types::RangeId;
use ashlar_wal::{GroupState, Record, Wal, WalError};
use futures::{Stream, TryStreamExt};
use metrics::Histogram;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

/// The most bytes of entries in one append, so that a frame stays far below its limit.
const APPEND_BYTES_MAX: usize = 1 << 20;
/// Entries that are read at once: eight of the largest batches are 4 MiB.
const READ_STEP: u64 = 8;

fn failed(error: WalError) -> io::Error {
    io::Error::other(error)
}

/// The log of one group.
pub(crate) struct LogStore {
    reader: LogReader,
    clock: Arc<dyn Clock>,
    append_seconds: Histogram,
    /// The newest committed id that was told, and whether the WAL has it.
    committed: Option<LogId>,
    committed_noted: bool,
}

/// Reads the log of one group.
#[derive(Clone)]
pub(crate) struct LogReader {
    wal: Wal,
    group: RangeId,
    /// The entries follow on this log id, which is of the range's parent: to the library they are purged up to there.
    first: Option<LogId>,
}

impl LogStore {
    pub(crate) fn new(
        wal: Wal,
        group: RangeId,
        first: Option<LogId>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let append_seconds = metrics::histogram!("ashlar_raft_append_seconds");
        let reader = LogReader { wal, group, first };
        Self { reader, clock, append_seconds, committed: None, committed_noted: true }
    }

    /// The note of the newest committed id, where the WAL has not got it: an old one that is lost is only an older id.
    fn committed_note(&self) -> Option<Record> {
        let id = self.committed.filter(|_| !self.committed_noted)?;
        Some(Record::Committed(log_id_bytes(id)))
    }
}

impl LogReader {
    fn state(&self) -> GroupState {
        self.wal.state(self.group)
    }

    /// The entries of `from .. to`, all of which the log has.
    fn entries(&self, from: u64, to: u64) -> io::Result<Vec<Entry>> {
        let found = self.wal.read(self.group, from, to).map_err(failed)?;
        if found.len() as u64 != to - from {
            let got = found.len();
            return Err(io::Error::other(format!("the log has {got} of the entries {from}..{to}")));
        }
        found.into_iter().map(|e| Ok(read_entry(e.term, e.index, e.payload)?)).collect()
    }

    /// What of `range` the log has.
    fn clamp(&self, range: &impl RangeBounds<u64>) -> (u64, u64) {
        let state = self.state();
        let from = match range.start_bound() {
            Bound::Included(&from) => from,
            Bound::Excluded(&from) => from.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(&to) => to.saturating_add(1),
            Bound::Excluded(&to) => to,
            Bound::Unbounded => u64::MAX,
        };
        let (Some(first), Some((last, _))) = (state.first_index, state.last) else { return (0, 0) };
        (from.max(first), to.min(last.saturating_add(1)))
    }

    /// What the log no longer holds, or never did.
    fn purged(&self) -> io::Result<Option<LogId>> {
        let purged = self.state().purged.map(|(_, id)| read_log_id(id)).transpose()?;
        Ok(purged.max(self.first))
    }

    fn is_purged(&self, index: u64) -> bool {
        self.purged().is_ok_and(|purged| purged.is_some_and(|upto| index <= upto.index))
    }

    /// The first entries of `from .. to`: at least one, and not many more bytes than a frame should have.
    ///
    /// None where they are purged. The library purges nothing that a replica of the range still has to get; only the
    /// stream of one that it has just removed may ask for it, until it notices. It takes none for a heartbeat, and
    /// ends; an error would stop the leader's whole group.
    fn some_entries(&self, from: u64, to: u64) -> io::Result<Vec<Entry>> {
        let to = to.min(from.saturating_add(APPEND_ENTRIES_MAX));
        let (mut entries, mut bytes, mut at) = (Vec::new(), 0, from);
        while at < to && bytes < APPEND_BYTES_MAX {
            let step = match self.entries(at, to.min(at + READ_STEP)) {
                Ok(step) => step,
                Err(_) if self.is_purged(at) => break,
                Err(error) => return Err(error),
            };
            at += step.len() as u64;
            bytes += step.iter().map(|entry| payload_bytes(entry).len()).sum::<usize>();
            entries.extend(step);
        }
        Ok(entries)
    }
}

impl RaftLogReader<Types> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (from, to) = self.clamp(&range);
        if from < to { self.entries(from, to) } else { Ok(Vec::new()) }
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.some_entries(start, end)
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = self.clamp(&range);
        let steps =
            futures::stream::try_unfold((self.clone(), from), move |(reader, at)| async move {
                if at >= to {
                    return Ok::<_, io::Error>(None);
                }
                let entries = reader.some_entries(at, to)?;
                let next = at + entries.len() as u64;
                let items = futures::stream::iter(entries.into_iter().map(Ok::<Entry, io::Error>));
                Ok(Some((items, (reader, next))))
            });
        Box::pin(steps.try_flatten())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.state().vote.map(read_vote).transpose()?)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let last_purged_log_id = self.reader.purged()?;
        let last = self.reader.state().last.map(|(index, term)| log_id(term, index));
        Ok(LogState { last_purged_log_id, last_log_id: last.or(last_purged_log_id) })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        self.reader.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let record = Record::Vote(vote_bytes(vote));
        self.reader.wal.submit_durable(self.reader.group, record).await.map_err(failed)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.committed_noted = self.committed == committed && self.committed_noted;
        self.committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        let noted = self.reader.state().committed.map(read_log_id).transpose()?;
        Ok(self.committed.max(noted))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries
            .into_iter()
            .map(|entry| ashlar_wal::Entry {
                index: entry.log_id.index,
                term: entry.log_id.leader_id.term,
                payload: payload_bytes(&entry),
            })
            .collect();
        self.reader.wal.room().await;
        let (clock, seconds, began) =
            (self.clock.clone(), self.append_seconds.clone(), self.clock.now());
        let done = move |result: Result<(), WalError>| {
            seconds.record(elapsed(&*clock, began));
            callback.io_completed(result.map_err(failed));
        };
        let mut records: Vec<Record> = self.committed_note().into_iter().collect();
        records.push(Record::Append(entries));
        self.reader.wal.submit_all(self.reader.group, records, Box::new(done)).map_err(failed)?;
        self.committed_noted = true;
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let record = Record::Truncate { after: last.map(|id| id.index) };
        self.reader.wal.submit_durable(self.reader.group, record).await.map_err(failed)
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        let record = Record::Purge { upto: upto.index, id: log_id_bytes(upto) };
        self.reader.wal.submit_durable(self.reader.group, record).await.map_err(failed)
    }
}

/// Seconds since `began`.
pub(crate) fn elapsed(clock: &dyn Clock, began: Monotonic) -> f64 {
    (clock.now() - began).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::batch_operation;
    use crate::raft::{EntryPayload, RaftEntry};
    use ashlar_host::{Host, SimDisk};
    use ashlar_wal::WalConfig;
    use openraft::type_config::TypeConfigExt;
    use openraft::type_config::alias::OneshotReceiverOf;

    type Flushed = OneshotReceiverOf<Types, Result<(), io::Error>>;

    fn store(disk: &SimDisk) -> LogStore {
        let host = Host::real().with_disk(Arc::new(disk.boot()));
        let config = WalConfig { file_bytes: 1 << 20, ..WalConfig::new("/wal".into()) };
        let wal = Wal::open(&host, config).expect("an empty WAL");
        LogStore::new(wal, RangeId(1), None, host.clock)
    }

    async fn append(log: &mut LogStore, index: u64) -> Flushed {
        let (sender, flushed) = Types::oneshot();
        let payload = EntryPayload::Normal(batch_operation(b"op"));
        let entry = Entry::new(log_id(1, index), payload);
        log.append([entry], IOFlushed::signal(sender)).await.expect("taken");
        flushed
    }

    #[tokio::test]
    async fn the_note_of_a_commit_costs_no_sync_of_its_own() {
        let disk = SimDisk::new();
        let mut log = store(&disk);
        append(&mut log, 0).await.await.expect("answered").expect("synced");
        for index in 1..30 {
            log.save_committed(Some(log_id(1, index - 1))).await.expect("kept");
            let before = disk.syncs();
            append(&mut log, index).await.await.expect("answered").expect("synced");
            assert_eq!(disk.syncs() - before, 1);
        }
        log.reader.wal.close().await;
        let noted = store(&disk).read_committed().await.expect("readable");
        assert_eq!(noted, Some(log_id(1, 28)), "it lags by one append");
    }

    #[tokio::test]
    async fn the_stream_of_a_removed_replica_does_not_stop_the_group_when_its_entries_are_purged() {
        let mut log = store(&SimDisk::new());
        for index in 0..20 {
            append(&mut log, index).await.await.expect("answered").expect("synced");
        }
        log.purge(log_id(1, 9)).await.expect("purged");
        let mut reader = log.get_log_reader().await;
        let purged = reader.limited_get_log_entries(3, 15).await.expect("a heartbeat");
        assert!(purged.is_empty(), "{purged:?}");
        let there = reader.limited_get_log_entries(10, 15).await.expect("there");
        assert_eq!(there.len(), 5);
        let beyond = reader.limited_get_log_entries(18, 25).await;
        assert!(beyond.is_err(), "nothing but what was purged may be missing: {beyond:?}");
    }

    #[tokio::test]
    async fn a_log_that_begins_behind_its_parents_entry_goes_on_from_there() {
        let disk = SimDisk::new();
        let LogStore { reader, clock, .. } = store(&disk);
        let first = log_id(1, 40);
        let begun = |wal: Wal| LogStore::new(wal, RangeId(1), Some(first), clock.clone());
        let mut log = begun(reader.wal.clone());
        let state = log.get_log_state().await.expect("readable");
        assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(first), Some(first)));
        let nothing = log.get_log_reader().await.try_get_log_entries(0..50).await;
        assert!(nothing.expect("readable").is_empty());
        append(&mut log, 41).await.await.expect("answered").expect("synced");
        append(&mut log, 42).await.await.expect("answered").expect("synced");
        log.reader.wal.close().await;
        drop((log, reader));

        let LogStore { reader, .. } = store(&disk);
        let mut log = begun(reader.wal.clone());
        let state = log.get_log_state().await.expect("readable");
        let last = Some(log_id(1, 42));
        assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(first), last));
        let mut entries = log.get_log_reader().await;
        assert_eq!(entries.try_get_log_entries(0..50).await.expect("readable").len(), 2);
        let before = entries.limited_get_log_entries(39, 43).await.expect("a heartbeat");
        assert!(before.is_empty(), "they are the parent's: {before:?}");
        log.purge(log_id(1, 41)).await.expect("purged");
        let state = log.get_log_state().await.expect("readable");
        assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(log_id(1, 41)), last));
        log.reader.wal.close().await;
    }

    #[tokio::test]
    async fn every_append_is_answered_once_in_order_also_when_the_disk_fails() {
        let disk = SimDisk::new();
        let mut log = store(&disk);
        append(&mut log, 0).await.await.expect("answered").expect("synced");
        let (mut index, mut failed) = (0, false);
        for round in 0..100 {
            // first a good one; the sync that fails may also be that of a file which is zeroed, then it is the next one
            disk.fail_sync_after(u64::from(round == 0));
            let (mut waiting, mut refused) = (Vec::new(), false);
            for _ in 0..3 {
                index += 1;
                let (sender, flushed) = Types::oneshot();
                let entry = Entry::new(log_id(1, index), EntryPayload::Blank);
                // an append that is refused at once says so itself, and has no later answer
                match log.append([entry], IOFlushed::signal(sender)).await {
                    Ok(()) => waiting.push(flushed),
                    Err(_) => refused = true,
                }
            }
            for flushed in waiting {
                let answer = flushed.await.expect("each that was taken is answered");
                assert!(!failed || answer.is_err(), "nothing is durable behind a failed sync");
                failed |= answer.is_err();
            }
            failed |= refused;
            if failed {
                break;
            }
        }
        assert!(failed);
        assert!(
            log.append([Entry::new(log_id(1, 99), EntryPayload::Blank)], IOFlushed::noop())
                .await
                .is_err()
        );
    }
}
