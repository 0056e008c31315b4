//! What begins a split, and what tells the root that it is done. The steps between are the duty of the range's leader
//! (`docs/adr/0020`).

use crate::{Client, Failure};
use ashlar_types::{
    KeyPoint, RangeAnswer, RangeId, RangeOp, RangeQuery, RootOp, RootOutcome, SplitAt, SplitDone,
    SplitState,
};

impl Client {
    /// The key before which half of the objects lie of the range that holds `at`; `None`: it has fewer than two.
    pub async fn middle_of_range(&self, at: &KeyPoint) -> Result<Option<KeyPoint>, Failure> {
        match self.query(at, RangeQuery::Middle).await? {
            RangeAnswer::Middle(middle) => Ok(middle),
            _ => Err(Failure::other_answer("a question for the middle of a range")),
        }
    }

    /// How far the splits are of the range that holds `at`, and whether it knows splits at all.
    pub async fn split_state(&self, at: &KeyPoint) -> Result<SplitState, Failure> {
        match self.query(at, RangeQuery::SplitState).await? {
            RangeAnswer::SplitState(state) => Ok(state),
            _ => Err(Failure::other_answer("a question for the splits of a range")),
        }
    }

    /// The range that holds `at` is to end there. Its leader sees to it; what lies behind will be the range of this id.
    pub async fn begin_split(&self, at: &KeyPoint) -> Result<RangeId, Failure> {
        let RootOutcome::Range(child) = self.root(RootOp::ReserveRange).await? else {
            return Err(Failure::other_answer("the reservation of a range's id"));
        };
        let split = SplitAt { child, at: at.clone() };
        self.0.execute_duty(at, RangeOp::PrepareSplit(split)).await?;
        Ok(child)
    }

    /// Both sides of a split are in the root's directory when this returns.
    pub async fn tell_split(&self, done: SplitDone) -> Result<(), Failure> {
        self.root(RootOp::Split(done)).await.map(|_| ())
    }
}
