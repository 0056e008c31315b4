//! Splits of the ranges that this node leads: begun where one has grown, driven through their steps, told to the root.
//!
//! All that a split is at lies in the range's state, so that whoever leads next goes on where this one stopped. No
//! range is parted while the root does not answer: until its directory has both sides, gateways do not find the right one.

use crate::leading::Leading;
use ashlar_client::{Client, Failure};
use ashlar_host::Host;
use ashlar_types::{
    Applied, Command, CommandReply, Epoch, Outcome, RangeAnswer, RangeId, RangeOp, RangeQuery,
    Refusal, SplitAt, SplitState,
};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::collections::BTreeSet;
use std::time::Duration;

/// Between two rounds.
const ROUND_EVERY: Duration = Duration::from_millis(500);

/// Splits ranges.
pub(crate) struct Splitter {
    pub(crate) host: Host,
    pub(crate) client: Client,
    pub(crate) leading: Leading,
    /// A range that has more objects is split; 0: none is.
    pub(crate) objects_max: u64,
}

/// Why a range does not get on now: another node leads it, or somebody does not answer.
struct NotNow(String);

impl From<Failure> for NotNow {
    fn from(failure: Failure) -> Self {
        Self(failure.to_string())
    }
}

impl Splitter {
    /// Goes on until it is dropped. Each range by itself: what is slow, or waits for somebody, is only passed over until it is
    /// done. So the steps of one never hold up the telling of another, for which requests wait.
    pub(crate) async fn run(self) {
        let (mut looks, mut looked_after) = (FuturesUnordered::new(), BTreeSet::new());
        loop {
            let mut pause = self.host.clock.sleep(ROUND_EVERY);
            loop {
                tokio::select! {
                    biased;
                    () = &mut pause => break,
                    Some(range) = looks.next() => { looked_after.remove(&range); }
                }
            }
            for range in self.leading.data_ranges() {
                if looked_after.insert(range) {
                    looks.push(self.look_after(range));
                }
            }
        }
    }

    async fn look_after(&self, range: RangeId) -> RangeId {
        if let Err(NotNow(why)) = self.get_on(range).await {
            tracing::debug!(%range, why, "a split does not get on now");
        }
        range
    }

    async fn get_on(&self, range: RangeId) -> Result<(), NotNow> {
        let state = self.state(range).await?;
        // before anything else: requests for the right side go in a circle until then
        self.tell(range, &state).await?;
        if state.more_steps {
            self.step(range).await?;
        }
        if let Some(split) = state.prepared {
            self.part(range, split).await?;
            return self.tell(range, &self.state(range).await?).await;
        }
        let has_grown = self.objects_max > 0 && state.objects > self.objects_max;
        if has_grown && state.untold.is_empty() && state.is_supported() {
            self.begin(range, state.objects).await?;
        }
        Ok(())
    }

    /// Not while the root is silent: nobody could be told where the right side is. The steps may have taken long, so it is
    /// asked here and not before them.
    async fn part(&self, range: RangeId, split: SplitAt) -> Result<(), NotNow> {
        self.client.ranges_now().await?;
        match self.execute(range, RangeOp::Split(split.clone())).await? {
            Outcome::Applied(_) => {
                metrics::counter!("ashlar_range_splits_total").increment(1);
                tracing::info!(%range, child = %split.child, bucket = %split.at.bucket, "a range was split");
                Ok(())
            }
            Outcome::Refused(refusal) => Err(NotNow(refusal.to_string())),
        }
    }

    /// Steps until none is left.
    async fn step(&self, range: RangeId) -> Result<(), NotNow> {
        loop {
            match self.execute(range, RangeOp::StepSplit).await? {
                Outcome::Applied(Applied::Stepped { more: true }) => {}
                Outcome::Applied(_) => return Ok(()),
                Outcome::Refused(refusal) => return Err(NotNow(refusal.to_string())),
            }
        }
    }

    /// In the order of their epochs: the root takes no other.
    async fn tell(&self, range: RangeId, state: &SplitState) -> Result<(), NotNow> {
        for done in &state.untold {
            let child = done.right.id;
            self.client.tell_split(done.clone()).await?;
            self.execute(range, RangeOp::SplitTold { child }).await?;
        }
        Ok(())
    }

    async fn begin(&self, range: RangeId, objects: u64) -> Result<(), NotNow> {
        let middle = match self.query(range, RangeQuery::Middle).await? {
            RangeAnswer::Middle(middle) => middle,
            other => return Err(NotNow(format!("an answer of another kind: {other:?}"))),
        };
        let Some(at) = middle else { return Ok(()) };
        tracing::info!(%range, objects, limit = self.objects_max, "a range has grown: it is to be split");
        match self.client.begin_split(&at).await {
            // somebody else has begun
            Ok(_) | Err(Failure::Refused(Refusal::Splitting)) => Ok(()),
            Err(failure) => Err(failure.into()),
        }
    }

    async fn state(&self, range: RangeId) -> Result<SplitState, NotNow> {
        match self.query(range, RangeQuery::SplitState).await? {
            RangeAnswer::SplitState(state) => Ok(state),
            other => Err(NotNow(format!("an answer of another kind: {other:?}"))),
        }
    }

    /// Asks the range here, past the directory: that may not know yet what the range is now.
    async fn query(&self, range: RangeId, query: RangeQuery) -> Result<RangeAnswer, NotNow> {
        let epoch = self.epoch(range)?;
        let answer = self.leading.meta.query(range, epoch, query).await;
        answer.map_err(|not_done| NotNow(not_done.to_string()))
    }

    async fn execute(&self, range: RangeId, op: RangeOp) -> Result<Outcome, NotNow> {
        let epoch = self.epoch(range)?;
        let reply = self.leading.meta.execute(range, epoch, Command { caller: None, op }).await;
        let CommandReply { outcome, .. } =
            reply.map_err(|not_done| NotNow(not_done.to_string()))?;
        Ok(outcome)
    }

    fn epoch(&self, range: RangeId) -> Result<Epoch, NotNow> {
        let here = self.leading.meta.descriptor(range);
        here.map(|here| here.epoch).ok_or_else(|| NotNow("it does not run here".to_owned()))
    }
}
