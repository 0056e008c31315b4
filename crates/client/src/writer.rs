//! Writing an object's content: extents of at most 64 MiB one after another, and a short tail that rides in the
//! command.
//!
//! What was written is named by nobody until a command is executed with the [`Ticket`]; a writer that is dropped
//! abandons it. An extent that fails below its quorum is written again to another group where its content is still in
//! memory (up to [`RETAINED_BYTES_MAX`]); a longer one fails the write, which has surely not been applied.

use crate::execute::Ticket;
use crate::extent::{ExtentFailed, ExtentWriter};
use crate::inner::Inner;
use crate::session::OpenSeq;
use crate::{Client, Failure};
use ashlar_types::{BucketId, Content, EXTENT_BYTES_MAX, Extent, INLINE_BYTES_MAX, PgId};
use bytes::{Bytes, BytesMut};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// Extents up to this length are kept in memory until they are acknowledged.
const RETAINED_BYTES_MAX: u64 = 3 << 20;
/// The most that one writer holds: a stripe being filled, and two cells queued for each slot.
const MEMORY_BYTES_MAX: u64 = 5 << 20;
/// How many groups an extent is tried on.
const GROUPS_TRIED_MAX: usize = 4;
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
    /// Extents that have failed or were broken off: abandoned at the end.
    given_up: Vec<Extent>,
    _memory: OwnedSemaphorePermit,
}

/// The extent that is being written.
struct Run {
    writer: ExtentWriter,
    length: u64,
    /// Its content so far, where it may have to be written again.
    retained: Option<Vec<Bytes>>,
    tried: BTreeSet<PgId>,
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
            given_up: Vec::new(),
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
            let left = self.extent.as_ref().map_or(0, |run| run.writer.left());
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            let part = bytes.split_to(count);
            self.written += count as u64;
            self.write_part(part).await?;
        }
        Ok(())
    }

    async fn begin_extent(&mut self, length: u64) -> Result<(), Failure> {
        let mut tried = BTreeSet::new();
        let writer = self.open_extent(length, &mut tried).await?;
        let retained = (length <= RETAINED_BYTES_MAX).then(Vec::new);
        self.extent = Some(Run { writer, length, retained, tried });
        Ok(())
    }

    async fn open_extent(
        &mut self,
        length: u64,
        tried: &mut BTreeSet<PgId>,
    ) -> Result<ExtentWriter, Failure> {
        let seq = self.seq.as_ref().expect("a writer has its seq until it is finished");
        let id = seq.session.next_extent();
        let group = self.inner.choose_group(id, length, tried).await?;
        tried.insert(group.id);
        Ok(ExtentWriter::new(self.inner.clone(), group, id, self.bucket, length))
    }

    async fn write_part(&mut self, part: Bytes) -> Result<(), Failure> {
        let Some(run) = self.extent.as_mut() else {
            return Ok(());
        };
        if let Some(retained) = &mut run.retained {
            retained.push(part.clone());
        }
        if let Err(failed) = run.writer.write(part).await {
            self.write_again(failed).await?;
        }
        self.finish_extent_if_whole().await
    }

    async fn finish_extent_if_whole(&mut self) -> Result<(), Failure> {
        loop {
            let Some(run) = self.extent.take_if(|run| run.writer.left() == 0) else {
                return Ok(());
            };
            let Run { writer, length, retained, tried } = run;
            // named before the wait: whoever is dropped in it still abandons the extent
            self.given_up.push(writer.as_abandoned());
            match writer.finish().await {
                Ok(extent) => {
                    self.given_up.pop();
                    self.content.extents.push(extent);
                    return Ok(());
                }
                Err(failed) => {
                    self.restart(length, retained, tried, failed).await?;
                }
            }
        }
    }

    /// The current extent has failed: its content goes to another group.
    async fn write_again(&mut self, failed: ExtentFailed) -> Result<(), Failure> {
        let Some(Run { writer, length, retained, tried }) = self.extent.take() else {
            return Ok(());
        };
        self.given_up.push(writer.as_abandoned());
        drop(writer);
        self.restart(length, retained, tried, failed).await
    }

    async fn restart(
        &mut self,
        length: u64,
        retained: Option<Vec<Bytes>>,
        mut tried: BTreeSet<PgId>,
        mut failed: ExtentFailed,
    ) -> Result<(), Failure> {
        let Some(retained) = retained else {
            return Err(Failure::unavailable(failed.to_string()));
        };
        while tried.len() < GROUPS_TRIED_MAX {
            metrics::counter!("ashlar_client_rewritten_extents_total").increment(1);
            tracing::info!(%failed, "an extent is written again to another placement group");
            let epoch = self.inner.map.load().epoch;
            self.inner.map_where(MAP_PATIENCE, |map| map.epoch > epoch).await;
            let mut writer = self.open_extent(length, &mut tried).await?;
            let mut end = Ok(());
            for part in &retained {
                end = writer.write(part.clone()).await;
                if end.is_err() {
                    break;
                }
            }
            match end {
                Ok(()) => {
                    self.extent = Some(Run { writer, length, retained: Some(retained), tried });
                    return Ok(());
                }
                Err(again) => {
                    self.given_up.push(writer.as_abandoned());
                    failed = again;
                }
            }
        }
        Err(Failure::unavailable(failed.to_string()))
    }

    /// Waits until all of the content is safe (D1). The ticket is for the one command that may name it.
    pub async fn finish(mut self) -> Result<(Content, Ticket), Failure> {
        if self.written != self.length {
            return Err(Failure::LengthDiffers { announced: self.length, found: self.written });
        }
        let mut content = std::mem::take(&mut self.content);
        content.tail = self.tail.split().freeze();
        let seq = self.seq.take().expect("a writer has its seq until it is finished");
        self.abandon_given_up(&seq);
        let ticket = Ticket::new(self.inner.clone(), seq, self.bucket, content.clone());
        Ok((content, ticket))
    }

    /// Failed extents are named by nobody: they are abandoned under a seq of their own.
    fn abandon_given_up(&mut self, seq: &OpenSeq) {
        let extents = std::mem::take(&mut self.given_up);
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
        content.extents.append(&mut self.given_up);
        content.extents.extend(self.extent.take().map(|run| run.writer.as_abandoned()));
        drop(Ticket::new(self.inner.clone(), seq, self.bucket, content));
    }
}
