//! Writing an object's content: extents of at most 64 MiB one after another, and a short tail that rides in the
//! command.
//!
//! What was written is named by nobody until a command is executed with the [`Ticket`]; a writer that is dropped
//! abandons it. What happens to an extent that falls below its quorum depends on where its content still is:
//!
//! | its content | next |
//! |---|---|
//! | in memory (up to [`RETAINED_BYTES_MAX`]) | it is written again to another group |
//! | in at least k shards | it is sealed behind its last stripe, read back and written to another group; the rest goes on in a new extent |
//! | nowhere | the write fails, and has surely not been applied |
//!
//! The first extent is named by nobody then: it is abandoned with whatever else is not needed in the end.

use crate::execute::Ticket;
use crate::extent::{ExtentFailed, ExtentWriter, Sealed};
use crate::inner::Inner;
use crate::session::OpenSeq;
use crate::{Client, Failure};
use ashlar_types::{
    BucketId, Content, EXTENT_BYTES_MAX, Extent, ExtentId, INLINE_BYTES_MAX, PgId, PlacementGroup,
    Profile,
};
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// Extents up to this length are kept in memory until they are acknowledged.
const RETAINED_BYTES_MAX: u64 = 3 << 20;
/// The most that one writer holds: a stripe being filled, and two cells queued for each slot.
const MEMORY_BYTES_MAX: u64 = 5 << 20;
/// So many failures without a whole extent between them end a write.
const FAILURES_MAX: u32 = 4;
/// How long a newer map is waited for, after an extent failed by the one that was known.
const MAP_PATIENCE: Duration = Duration::from_millis(100);

/// Content on its way to the data nodes.
#[must_use = "content that is not finished is abandoned"]
pub struct ObjectWriter {
    inner: Arc<Inner>,
    bucket: BucketId,
    seq: Option<OpenSeq>,
    length: u64,
    written: u64,
    content: Content,
    tail: BytesMut,
    extent: Option<Run>,
    /// Every extent that was begun and is not in `content`: abandoned in the end, wherever the writer is dropped.
    unnamed: BTreeMap<ExtentId, Extent>,
    /// Since the last extent that ended well.
    failures: u32,
    failed_groups: BTreeSet<PgId>,
    _memory: OwnedSemaphorePermit,
}

/// The extent that is being written.
struct Run {
    writer: ExtentWriter,
    /// Its content so far, where that may be kept.
    retained: Option<Vec<Bytes>>,
}

/// Why content that was read back is not in its new extent.
enum CopyFailed {
    /// It cannot be read.
    Source(Failure),
    /// It cannot be written.
    Target(ExtentFailed),
}

impl std::fmt::Debug for ObjectWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (length, written) = (self.length, self.written);
        f.debug_struct("ObjectWriter")
            .field("length", &length)
            .field("written", &written)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Begins to write content of `length` bytes for an object of `bucket`. It waits for its share of memory.
    pub async fn writer(
        &self,
        bucket: BucketId,
        length: Option<u64>,
    ) -> Result<ObjectWriter, Failure> {
        let length = length.ok_or(Failure::LengthRequired)?;
        let memory = self.0.reserve((length * 2).min(MEMORY_BYTES_MAX)).await?;
        let session = self.0.session().await?;
        Ok(ObjectWriter {
            inner: self.0.clone(),
            bucket,
            seq: Some(session.open_seq()),
            length,
            written: 0,
            content: Content::default(),
            tail: BytesMut::new(),
            extent: None,
            unnamed: BTreeMap::new(),
            failures: 0,
            failed_groups: BTreeSet::new(),
            _memory: memory,
        })
    }
}

impl ObjectWriter {
    /// Takes the next bytes. It waits while the homes are busy: that is the back-pressure for the sender.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), Failure> {
        let found = self.written + bytes.len() as u64;
        if found > self.length {
            return Err(Failure::LengthDiffers { announced: self.length, found });
        }
        while !bytes.is_empty() {
            let rest = self.length - self.written;
            if self.extent.is_none() && rest <= INLINE_BYTES_MAX as u64 {
                self.written += bytes.len() as u64;
                self.tail.extend_from_slice(&bytes);
                return Ok(());
            }
            if self.extent.is_none() {
                self.begin_extent(rest.min(EXTENT_BYTES_MAX)).await?;
            }
            self.write_part(&mut bytes).await?;
        }
        Ok(())
    }

    async fn begin_extent(&mut self, length: u64) -> Result<(), Failure> {
        let writer = self.open_extent(length).await?;
        let retained = (length <= RETAINED_BYTES_MAX).then(Vec::new);
        self.extent = Some(Run { writer, retained });
        Ok(())
    }

    async fn open_extent(&mut self, length: u64) -> Result<ExtentWriter, Failure> {
        let id = self.next_extent();
        let group = self.inner.choose_group(id, length, &self.failed_groups).await?;
        Ok(self.extent_in(group, id, length))
    }

    fn next_extent(&self) -> ExtentId {
        let seq = self.seq.as_ref().expect("a writer has its seq until it is finished");
        seq.session.next_extent()
    }

    fn extent_in(&mut self, group: PlacementGroup, id: ExtentId, length: u64) -> ExtentWriter {
        let writer = ExtentWriter::new(self.inner.clone(), group, id, self.bucket, length);
        self.unnamed.insert(id, writer.as_abandoned());
        writer
    }

    /// All of the content is that of `source`, in one extent of this profile that misses no slot. Where that cannot be
    /// had now, nothing is written that anything names.
    pub(crate) async fn copy_from(
        &mut self,
        source: &Extent,
        profile: Profile,
    ) -> Result<(), Failure> {
        let id = self.next_extent();
        let group = self.inner.whole_group(id, profile);
        let group = group.ok_or_else(|| {
            Failure::unavailable(format!("no group of {profile} has all of its homes now"))
        })?;
        let writer = self.extent_in(group, id, source.length);
        let copied = match copy(&self.inner, source, writer).await {
            Ok(extent) => extent,
            Err(CopyFailed::Source(failure)) => return Err(failure),
            Err(CopyFailed::Target(failed)) => {
                return Err(Failure::unavailable(failed.to_string()));
            }
        };
        if !copied.missing.is_empty() {
            return Err(Failure::unavailable("a home failed while the copy was written"));
        }
        self.written = copied.length;
        self.name(copied);
        Ok(())
    }

    /// Puts as much of `bytes` into the current extent as it takes.
    async fn write_part(&mut self, bytes: &mut Bytes) -> Result<(), Failure> {
        let Some(run) = self.extent.as_mut() else {
            return Ok(());
        };
        let offered = bytes.clone();
        let end = run.writer.write(bytes).await;
        let taken = offered.slice(..offered.len() - bytes.len());
        self.written += taken.len() as u64;
        if let Some(retained) = &mut run.retained {
            retained.push(taken);
        }
        if end.is_ok() && run.writer.left() > 0 {
            return Ok(());
        }
        match self.extent.take() {
            Some(Run { writer, retained: Some(parts) }) => {
                self.end_retained(writer, parts, end).await
            }
            Some(Run { writer, retained: None }) => self.end_streamed(writer).await,
            None => Ok(()),
        }
    }

    /// Ends an extent whose content is in memory; where it has failed, it is written again.
    async fn end_retained(
        &mut self,
        mut writer: ExtentWriter,
        parts: Vec<Bytes>,
        mut end: Result<(), ExtentFailed>,
    ) -> Result<(), Failure> {
        let length = writer.length();
        loop {
            if end.is_ok() && writer.left() > 0 {
                self.extent = Some(Run { writer, retained: Some(parts) });
                return Ok(());
            }
            let failed = match end {
                Ok(()) => match writer.finish().await {
                    Ok(extent) => {
                        self.ended_well(extent);
                        return Ok(());
                    }
                    Err(failed) => failed,
                },
                Err(failed) => {
                    drop(writer);
                    failed
                }
            };
            self.after_failure(failed).await?;
            writer = self.open_extent(length).await?;
            end = Ok(());
            for part in &parts {
                end = writer.write(&mut part.clone()).await;
                if end.is_err() {
                    break;
                }
            }
        }
    }

    /// Ends an extent whose content is with its homes only.
    async fn end_streamed(&mut self, writer: ExtentWriter) -> Result<(), Failure> {
        match writer.seal().await {
            Ok(Sealed::Safe(extent)) => {
                self.ended_well(extent);
                Ok(())
            }
            Ok(Sealed::Short(extent, failed)) => {
                self.after_failure(failed).await?;
                self.rewrite(&extent).await
            }
            Err(failed) => Err(Failure::unavailable(failed.to_string())),
        }
    }

    /// Writes the content of an extent that can be read, but must not be named, into another one that may be (D1).
    async fn rewrite(&mut self, short: &Extent) -> Result<(), Failure> {
        loop {
            let writer = self.open_extent(short.length).await?;
            match copy(&self.inner, short, writer).await {
                Ok(extent) => {
                    self.name(extent);
                    return Ok(());
                }
                Err(CopyFailed::Source(failure)) => {
                    return Err(Failure::unavailable(failure.to_string()));
                }
                Err(CopyFailed::Target(failed)) => self.after_failure(failed).await?,
            }
        }
    }

    /// An extent has failed: the next one avoids its group. It waits a moment for a map that knows what has happened.
    async fn after_failure(&mut self, failed: ExtentFailed) -> Result<(), Failure> {
        self.failed_groups.insert(failed.group);
        self.failures += 1;
        if self.failures >= FAILURES_MAX {
            return Err(Failure::unavailable(failed.to_string()));
        }
        metrics::counter!("ashlar_client_rewritten_extents_total").increment(1);
        tracing::info!(%failed, "an extent is written again to another placement group");
        let epoch = self.inner.map.load().epoch;
        self.inner.map_where(MAP_PATIENCE, |map| map.epoch > epoch).await;
        Ok(())
    }

    fn ended_well(&mut self, extent: Extent) {
        (self.failures, self.failed_groups) = (0, BTreeSet::new());
        self.name(extent);
    }

    fn name(&mut self, extent: Extent) {
        self.unnamed.remove(&extent.id);
        self.content.extents.push(extent);
    }

    /// Waits until all of the content is safe (D1). The ticket is for the one command that may name it.
    pub async fn finish(mut self) -> Result<(Content, Ticket), Failure> {
        if self.written != self.length {
            return Err(Failure::LengthDiffers { announced: self.length, found: self.written });
        }
        // whoever drops a write in the middle may have lost what it was given
        let stored = self.content.length() + self.tail.len() as u64;
        if stored != self.length {
            return Err(Failure::LengthDiffers { announced: self.length, found: stored });
        }
        let mut content = std::mem::take(&mut self.content);
        content.tail = self.tail.split().freeze();
        let seq = self.seq.take().expect("a writer has its seq until it is finished");
        self.abandon_unnamed(&seq);
        let ticket = Ticket::new(self.inner.clone(), seq, self.bucket, content.clone());
        Ok((content, ticket))
    }

    /// Failed extents are named by nobody: they are abandoned under a seq of their own.
    fn abandon_unnamed(&mut self, seq: &OpenSeq) {
        let extents: Vec<Extent> = std::mem::take(&mut self.unnamed).into_values().collect();
        if !extents.is_empty() {
            let content = Content { extents, tail: Bytes::new() };
            drop(Ticket::new(self.inner.clone(), seq.session.open_seq(), self.bucket, content));
        }
    }
}

impl Drop for ObjectWriter {
    fn drop(&mut self) {
        let Some(seq) = self.seq.take() else {
            return;
        };
        let mut content = std::mem::take(&mut self.content);
        content.extents.extend(std::mem::take(&mut self.unnamed).into_values());
        drop(Ticket::new(self.inner.clone(), seq, self.bucket, content));
    }
}

/// Reads `source` back stripe by stripe and writes it through `writer`. One stripe is in memory at a time: the next is
/// read when the connections have taken the last (S5).
async fn copy(
    inner: &Arc<Inner>,
    source: &Extent,
    mut writer: ExtentWriter,
) -> Result<Extent, CopyFailed> {
    let stripe = u64::from(source.cell_bytes) * u64::from(source.profile.data);
    let mut from = 0;
    while from < source.length {
        let to = source.length.min(from + stripe);
        let read = inner.read_window(source, from, to).await;
        for mut frame in read.map_err(CopyFailed::Source)? {
            writer.write(&mut frame).await.map_err(CopyFailed::Target)?;
        }
        writer.drained().await;
        from = to;
    }
    let extent = writer.finish().await.map_err(CopyFailed::Target)?;
    if (extent.length, extent.crc64) != (source.length, source.crc64) {
        return Err(CopyFailed::Source(Failure::Corrupt { extent: Box::new(source.clone()) }));
    }
    Ok(extent)
}
