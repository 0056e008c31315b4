//! Commands to ranges, each of which happens at most once, and tickets: the right to one command that names what was
//! written.
//!
//! Every send of a command has the same session and seq until it is answered or given up. What a command would have
//! named is abandoned under that very seq when it is given up: whichever the log orders first wins, so that neither an
//! acknowledged object loses its extents nor a lost race leaves them for ever.

use crate::call::{Answered, Attempt, Target, Unanswered, Verb};
use crate::inner::Inner;
use crate::session::OpenSeq;
use crate::{Client, Failure};
use ashlar_host::TaskKind;
use ashlar_types::{
    Abandon, Applied, BucketId, Caller, Command, CommandReply, Content, Epoch, Interval, KeyPoint,
    Outcome, RangeId, RangeOp, Refusal, decode, encode,
};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

/// How often one command follows a change of its bucket's row. More would be a quarrel, not a change.
const BUCKET_AGREEMENTS_MAX: u32 = 4;

/// The right to one command that names what an [`crate::ObjectWriter`] wrote: it holds the session and the seq. Dropped
/// unused, what was written is abandoned.
#[must_use = "what was written is abandoned unless a command is executed with its ticket"]
pub struct Ticket(Option<Claim>);

/// A seq, and the extents for whose end this client answers.
struct Claim {
    inner: Arc<Inner>,
    seq: OpenSeq,
    at: KeyPoint,
    content: Content,
    /// `None`: nothing was sent.
    base: Option<Base>,
}

/// The index of a range as it was known before the first send of a command. A resend and an `Abandon` say the same one: with
/// a newer one a range that has forgotten the result would take them for new (D2).
#[derive(Debug, Clone, Copy)]
struct Base {
    range: RangeId,
    index: u64,
}

impl Base {
    /// What a send to `range` says. Where an earlier one may have reached the range that this one was a part of, the number
    /// is of another log: then it is the least, so that a result that was forgotten on either side is never taken for
    /// one that never was (C7).
    fn index_for(self, range: RangeId, maybe_received: bool, known: u64) -> u64 {
        match self.range == range {
            true => self.index,
            false if maybe_received => 0,
            false => known,
        }
    }
}

impl Ticket {
    pub(crate) fn new(inner: Arc<Inner>, seq: OpenSeq, bucket: BucketId, content: Content) -> Self {
        // an unused ticket was never sent, so it races with nothing: any range of the bucket may collect its extents
        let at = KeyPoint::new(bucket, []);
        Self(Some(Claim { inner, seq, at, content, base: None }))
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seq = self.0.as_ref().map(|claim| (claim.seq.session.id, claim.seq.seq));
        f.debug_tuple("Ticket").field(&seq).finish()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(claim) = self.0.take() {
            claim.abandon();
        }
    }
}

impl Claim {
    /// Sends [`RangeOp::Abandon`] in the background, under the seq that the command had or would have had.
    fn abandon(self) {
        if self.content.extents.is_empty() || self.seq.session.is_fenced() {
            return;
        }
        let tasks = self.inner.host.tasks.clone();
        let abandoning = async move {
            metrics::counter!("ashlar_client_abandoned_total").increment(1);
            let (session, seq) = (self.seq.session.id, self.seq.seq);
            if let Err(failure) = self.send_abandon().await {
                tracing::warn!(%session, seq, %failure, "what was abandoned is left to the audit");
            }
        };
        let _abandoning = tasks.spawn(TaskKind::Background("abandon"), Box::pin(abandoning));
    }

    /// Until a range has taken it, or has dealt with the command itself. What no range will judge any more is left to
    /// the audit (D3): it may be named.
    async fn send_abandon(mut self) -> Result<(), Failure> {
        let (inner, seq) = (&self.inner, &self.seq);
        let content =
            Content { extents: std::mem::take(&mut self.content.extents), tail: Bytes::new() };
        let mut op = RangeOp::Abandon(Abandon { at: self.at.clone(), seq: seq.seq, content });
        let was_sent = self.base.is_some();
        let mut attempt = Attempt::new(inner);
        // what was sent under this seq before may have arrived
        attempt.maybe_received = was_sent;
        loop {
            let sent = inner.host.clock.now();
            let (reply, base, sent_op) =
                inner.send_command(seq, &self.at, op, &mut self.base, &mut attempt).await?;
            op = sent_op;
            let refusal = match reply.outcome {
                Outcome::Applied(_) => return Ok(()),
                Outcome::Refused(refusal) => refusal,
            };
            match refusal {
                Refusal::OutsideRange => inner.follow_range(sent, &mut attempt).await?,
                // nothing was sent under this seq that could have named anything: it may be judged as new
                Refusal::Forgotten if !was_sent && base.index != reply.index => {
                    self.base = Some(Base { index: reply.index, ..base });
                }
                Refusal::SessionFenced => {
                    seq.session.fence();
                    return Err(Failure::Refused(refusal));
                }
                Refusal::Forgotten | Refusal::ForeignExtent | Refusal::BucketEpoch { .. } => {
                    return Err(Failure::Refused(refusal));
                }
                // what the command itself came to: it has dealt with what it named
                Refusal::ConditionFailed
                | Refusal::NoSuchKey
                | Refusal::NoSuchUpload
                | Refusal::PartsChanged
                | Refusal::ObjectChanged
                | Refusal::BucketFenced
                | Refusal::BucketNotEmpty
                | Refusal::Unsupported
                | Refusal::NotMissing
                | Refusal::ExtentChanged
                | Refusal::TooFewLeft
                | Refusal::SessionLives
                | Refusal::ExtentNamed
                | Refusal::Splitting
                | Refusal::NotPrepared
                | Refusal::BadSplitPoint
                | Refusal::MembersChanging
                | Refusal::Abandoned => return Ok(()),
            }
        }
    }
}

impl Inner {
    /// Sends a command once it is numbered, until it is answered. It is numbered anew where its key has gone to another
    /// range meanwhile. Gives back also the base that it was answered for.
    async fn send_command(
        &self,
        seq: &OpenSeq,
        at: &KeyPoint,
        op: RangeOp,
        base: &mut Option<Base>,
        attempt: &mut Attempt,
    ) -> Result<(CommandReply, Base, RangeOp), Failure> {
        let mut command = Command { caller: None, op };
        loop {
            let range = self.range_at(at, attempt.deadline).await;
            let range = range.map_err(|reason| attempt.give_up(reason))?.id;
            let known = self.directory.index(range);
            let first = base.get_or_insert(Base { range, index: known });
            if !attempt.maybe_received {
                *first = Base { range, index: first.index_for(range, false, known) };
            }
            let index = first.index_for(range, attempt.maybe_received, known);
            command.caller = Some(Caller {
                session: seq.session.id,
                seq: seq.seq,
                answered_below: seq.session.answered_below(),
                base_index: index,
            });
            let body = Bytes::from(encode(&command));
            let sent = self.call(Target::In(at, range), Verb::Execute, body, attempt).await;
            match sent {
                Ok(answered) => {
                    let (reply, _) = self.read_reply(&answered)?;
                    return Ok((reply, Base { range, index }, command.op));
                }
                Err(Unanswered::Moved) => {}
                Err(Unanswered::GivenUp(reason)) => return Err(attempt.give_up(reason)),
            }
        }
    }

    fn read_reply(&self, answered: &Answered) -> Result<(CommandReply, Interval), Failure> {
        // it was proposed: an answer that cannot be read leaves its outcome open
        let reply: CommandReply =
            decode(&answered.body).map_err(|error| Failure::unknown(error.to_string()))?;
        let Some(range) = &answered.range else {
            return Err(Failure::other_answer("a command to a range"));
        };
        self.directory.saw_index(range.id, reply.index);
        Ok((reply, range.interval.clone()))
    }

    /// A command that is idempotent by what it says, so that it needs no session. Gives back also the interval of the
    /// range that did it.
    pub(crate) async fn execute_duty(
        &self,
        at: &KeyPoint,
        op: RangeOp,
    ) -> Result<(Applied, Interval), Failure> {
        let body = Bytes::from(encode(&Command { caller: None, op }));
        let mut attempt = Attempt::new(self);
        loop {
            let sent = self.host.clock.now();
            let call = self.call(Target::At(at), Verb::Execute, body.clone(), &mut attempt);
            let answered = match call.await {
                Ok(answered) => answered,
                Err(unanswered) => return Err(attempt.give_up(unanswered.to_string())),
            };
            let (reply, interval) = self.read_reply(&answered)?;
            match reply.outcome {
                Outcome::Applied(applied) => return Ok((applied, interval)),
                Outcome::Refused(Refusal::OutsideRange) => {
                    self.follow_range(sent, &mut attempt).await?;
                }
                Outcome::Refused(refusal) => return Err(Failure::Refused(refusal)),
            }
        }
    }

    /// After a range said that the key is not its: reads the directory again, and waits where that is no newer.
    pub(crate) async fn follow_range(
        &self,
        seen: ashlar_host::Monotonic,
        attempt: &mut Attempt,
    ) -> Result<(), Failure> {
        let refreshed = self.refresh_directory(seen, attempt.deadline).await;
        refreshed.map_err(|reason| attempt.give_up(reason))?;
        if attempt.pause(self, Duration::ZERO).await {
            return Ok(());
        }
        Err(attempt.give_up("no range admits to holding the key".to_owned()))
    }
}

impl Client {
    /// Executes a command exactly once, or says that its outcome is not known. `ticket` is the one under which the
    /// content that `op` names was written; without content none is needed.
    pub async fn execute(
        &self,
        ticket: Option<Ticket>,
        at: &KeyPoint,
        op: RangeOp,
    ) -> Result<Applied, Failure> {
        let mut claim = match ticket.and_then(|mut ticket| ticket.0.take()) {
            Some(claim) => claim,
            None => Claim {
                inner: self.0.clone(),
                seq: self.0.session().await?.open_seq(),
                at: at.clone(),
                content: Content::default(),
                base: None,
            },
        };
        claim.at.clone_from(at);
        // whoever is dropped while the command is under way abandons it: it may or may not have been proposed
        let mut guard = Ticket(Some(claim));
        let outcome = self.execute_claimed(&mut guard, at, op).await?;
        // apply has judged the command, and so dealt with what it named
        guard.0 = None;
        match outcome {
            Outcome::Applied(applied) => Ok(applied),
            Outcome::Refused(refusal) => Err(Failure::Refused(refusal)),
        }
    }

    /// What apply has made of the command. A failure: it has not judged it, or nobody knows.
    async fn execute_claimed(
        &self,
        guard: &mut Ticket,
        at: &KeyPoint,
        mut op: RangeOp,
    ) -> Result<Outcome, Failure> {
        let inner = &*self.0;
        let mut attempt = Attempt::new(inner);
        let mut agreements = 0;
        loop {
            let claim =
                guard.0.as_mut().expect("the guard keeps its claim until the command has ended");
            let sent = inner.host.clock.now();
            let Claim { seq, base, .. } = claim;
            let (reply, base, sent_op) =
                inner.send_command(seq, at, op, base, &mut attempt).await?;
            op = sent_op;
            let refusal = match reply.outcome {
                Outcome::Applied(applied) => return Ok(Outcome::Applied(applied)),
                Outcome::Refused(refusal) => refusal,
            };
            match refusal {
                Refusal::SessionFenced => {
                    claim.seq.session.fence();
                    let ended = "the gateway session has ended".to_owned();
                    if attempt.maybe_received || !claim.content.extents.is_empty() {
                        return Err(attempt.give_up(ended));
                    }
                    claim.seq = inner.session().await?.open_seq();
                    claim.base = None;
                    if !attempt.pause(inner, Duration::ZERO).await {
                        return Err(attempt.give_up(ended));
                    }
                }
                Refusal::Forgotten => {
                    // a first send can only have been too far behind the range's log: it is told where that is
                    if attempt.maybe_received || base.index == reply.index {
                        return Err(attempt.give_up(Refusal::Forgotten.to_string()));
                    }
                    claim.base = Some(Base { index: reply.index, ..base });
                }
                // this refusal is not remembered by the range: an earlier send may still arrive, and be applied (C7)
                Refusal::BucketEpoch { .. } if agreements == BUCKET_AGREEMENTS_MAX => {
                    return Err(attempt.give_up("the bucket changes again and again".to_owned()));
                }
                Refusal::BucketEpoch { known } => {
                    agreements += 1;
                    let agreed = inner.agree_on_bucket(at, known).await;
                    match agreed.map_err(|failure| attempt.give_up(failure.to_string()))? {
                        Some(epoch) => set_bucket_epoch(&mut op, epoch),
                        None if attempt.maybe_received => {
                            return Err(attempt.give_up(Refusal::BucketFenced.to_string()));
                        }
                        // the root's word, not that of apply: what was written is still to be abandoned
                        None => return Err(Failure::Refused(Refusal::BucketFenced)),
                    }
                }
                Refusal::OutsideRange => inner.follow_range(sent, &mut attempt).await?,
                Refusal::ConditionFailed
                | Refusal::NoSuchKey
                | Refusal::NoSuchUpload
                | Refusal::PartsChanged
                | Refusal::ObjectChanged
                | Refusal::BucketFenced
                | Refusal::BucketNotEmpty
                | Refusal::ForeignExtent
                | Refusal::Abandoned
                | Refusal::NotMissing
                | Refusal::ExtentChanged
                | Refusal::TooFewLeft
                | Refusal::SessionLives
                | Refusal::ExtentNamed
                | Refusal::Splitting
                | Refusal::NotPrepared
                | Refusal::BadSplitPoint
                | Refusal::MembersChanging
                | Refusal::Unsupported => return Ok(Outcome::Refused(refusal)),
            }
        }
    }
}

fn set_bucket_epoch(op: &mut RangeOp, epoch: Epoch) {
    match op {
        RangeOp::Put(put) => put.bucket_epoch = epoch,
        RangeOp::Delete(delete) => delete.bucket_epoch = epoch,
        RangeOp::DeleteVersion(delete) => delete.bucket_epoch = epoch,
        RangeOp::CreateUpload(create) => create.bucket_epoch = epoch,
        RangeOp::PutPart(part) => part.bucket_epoch = epoch,
        RangeOp::CompleteUpload(complete) => complete.bucket_epoch = epoch,
        RangeOp::AbortUpload(abort) => abort.bucket_epoch = epoch,
        RangeOp::Redescribe(redescribe) => redescribe.bucket_epoch = epoch,
        RangeOp::Abandon(_)
        | RangeOp::SetBucket(_)
        | RangeOp::FenceBucket { .. }
        | RangeOp::UnfenceBucket { .. }
        | RangeOp::RaiseSessionFloor { .. }
        | RangeOp::CollectDone { .. }
        | RangeOp::RaiseApplyVersion { .. }
        | RangeOp::ReportHash
        | RangeOp::Repaired { .. }
        | RangeOp::Recode(_)
        | RangeOp::MarkLost(_)
        | RangeOp::PrepareSplit(_)
        | RangeOp::StepSplit
        | RangeOp::Split(_)
        | RangeOp::SplitTold { .. }
        | RangeOp::QueueOrphans { .. } => {}
    }
}
