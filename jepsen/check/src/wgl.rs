//! A search for an order that explains one object's history, conditions and deletes included (C2, C3, C6).
//!
//! The algorithm of Wing and Gong ("Testing and Verifying Concurrent Objects", 1993) with Lowe's memory of
//! configurations that are known to lead nowhere ("Testing for Linearizability", 2017): repeatedly choose an operation
//! that no unordered one precedes in time, apply it, and go back where nothing fits. A configuration is the set of
//! ordered operations and the state; it is kept whole, not as a hash of it, so that a collision cannot make a verdict.
//!
//! What keeps it small on our histories, each without changing an answer:
//! - A read or a refused condition that fits is ordered at once: whatever order works with it later works with it now.
//! - Values are unique: a value is not replaced while something that needs it has no place yet.
//! - Values that nobody saw or demanded are one and the same state, `Other`.
//! - Of operations with the same effect that may come next, only the one that ends first is tried.
//! - Operations of unknown outcome need no place. Of those with the same effect only the one that began first is tried.
//!
//! Steps are counted and bounded; beyond the bound the answer is "given up", which makes the verdict inconclusive.
//! The bound is in steps, not in time, so that a history has one verdict on every machine.
//!
//! Why own: the Rust libraries for this bound their search by wall-clock time, know no open operations, and bring
//! benchmark harnesses and thread pools as dependencies.

use crate::story::{Demand, Span, Story};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The answer of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// There is an order.
    Linearizable,
    /// There is none; this operation is the one that the longest attempt had no place for.
    NoOrder(u64),
    /// Not decided within the bound.
    GivenUp,
}

/// Steps that every search may take, beyond a few for each operation.
pub(crate) const STEPS_MAX: u64 = 1_000_000;
const STEPS_PER_OPERATION: u64 = 4;

/// What an object holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    Absent,
    Value(u64),
    /// A value that nobody saw or demanded.
    Other,
}

/// What an operation demands of the state, and makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Step {
    /// Always possible; the object is this afterwards, none for an unseen value.
    Put(Option<u64>),
    Delete,
    Create(Option<u64>),
    Swap(u64, Option<u64>),
    SeeAbsent,
    SeeValue(u64),
    SeePresent,
    SeeNot(u64),
}

impl Step {
    /// The state after it, if it may happen in this one.
    fn apply(self, state: State) -> Option<State> {
        let value = |new: Option<u64>| new.map_or(State::Other, State::Value);
        let if_so = |holds: bool, after: State| holds.then_some(after);
        match self {
            Self::Put(new) => Some(value(new)),
            Self::Delete => Some(State::Absent),
            Self::Create(new) => if_so(state == State::Absent, value(new)),
            Self::Swap(old, new) => if_so(state == State::Value(old), value(new)),
            Self::SeeAbsent => if_so(state == State::Absent, state),
            Self::SeeValue(seen) => if_so(state == State::Value(seen), state),
            Self::SeePresent => if_so(state != State::Absent, state),
            Self::SeeNot(other) => if_so(state != State::Value(other), state),
        }
    }

    /// Whether it leaves every state as it is.
    fn only_looks(self) -> bool {
        match self {
            Self::SeeAbsent | Self::SeeValue(_) | Self::SeePresent | Self::SeeNot(_) => true,
            Self::Put(_) | Self::Delete | Self::Create(_) | Self::Swap(..) => false,
        }
    }

    /// The value that must be there for it.
    fn needs(self) -> Option<u64> {
        match self {
            Self::Swap(value, _) | Self::SeeValue(value) => Some(value),
            Self::Put(_)
            | Self::Delete
            | Self::Create(_)
            | Self::SeeAbsent
            | Self::SeePresent
            | Self::SeeNot(_) => None,
        }
    }

    /// The named value that is there after it.
    fn makes(self) -> Option<u64> {
        match self {
            Self::Put(new) | Self::Create(new) | Self::Swap(_, new) => new,
            Self::Delete
            | Self::SeeAbsent
            | Self::SeeValue(_)
            | Self::SeePresent
            | Self::SeeNot(_) => None,
        }
    }
}

/// Operations of unknown outcome that nobody saw: the moments of their invocations, by what they do.
type OpenOperations = BTreeMap<Step, Vec<u64>>;

/// Whether some order explains the story, within the steps that a search may take.
pub(crate) fn search(story: &Story<'_>, steps_max: u64) -> Answer {
    let (placed, open) = operations_of(story);
    let bound = steps_max + STEPS_PER_OPERATION * (placed.len() as u64);
    Search::new(&placed, open).run(bound)
}

/// The operations that need a place, by their invocations; and the open ones, invocations by effect.
fn operations_of(story: &Story<'_>) -> (Vec<(Span, Step)>, OpenOperations) {
    let mut named: HashSet<u64> = story.sights.iter().filter_map(|sight| sight.value).collect();
    let demands = story.writes.iter().map(|write| write.demand);
    for demand in demands.chain(story.refusals.iter().map(|refusal| refusal.demand)) {
        if let Demand::Value(value) = demand {
            named.insert(value);
        }
    }
    let mut placed = Vec::new();
    let mut open = OpenOperations::new();
    let swaps: HashSet<u64> = story.writes.iter().map(|write| write.span.number).collect();
    for write in story.writes.iter().filter(|write| !write.refused) {
        let new = named.contains(&write.value).then_some(write.value);
        let step = match write.demand {
            Demand::Nothing => Step::Put(new),
            Demand::Absent => Step::Create(new),
            Demand::Value(old) => Step::Swap(old, new),
        };
        if write.happened {
            placed.push((write.span, step));
        } else {
            open.entry(step).or_default().push(write.span.from);
        }
    }
    for delete in &story.deletes {
        placed.push((*delete, Step::Delete));
    }
    for delete in &story.open_deletes {
        open.entry(Step::Delete).or_default().push(delete.from);
    }
    for sight in &story.sights {
        // A successful swap is a sight of what it replaced, told once: by the swap.
        let by_swap = sight.value.is_some() && swaps.contains(&sight.span.number);
        if !by_swap {
            placed.push((sight.span, sight.value.map_or(Step::SeeAbsent, Step::SeeValue)));
        }
    }
    for refusal in &story.refusals {
        let step = match refusal.demand {
            Demand::Absent | Demand::Nothing => Step::SeePresent,
            Demand::Value(old) => Step::SeeNot(old),
        };
        placed.push((refusal.span, step));
    }
    placed.sort_unstable_by_key(|(span, _)| (span.from, span.to, span.number));
    open.values_mut().for_each(|invocations| invocations.sort_unstable());
    (placed, open)
}

/// Open operations of one effect.
struct Class {
    step: Step,
    invocations: Vec<u64>,
    used: usize,
}

/// One thing to try.
#[derive(Clone, Copy)]
enum Move {
    Place(usize),
    Open(usize),
}

/// A configuration from which several moves may be tried.
struct Choice {
    state: State,
    /// Moves made when it was reached.
    made: usize,
    /// What is left to try, the most promising last.
    moves: Vec<Move>,
}

/// A configuration that has been tried: all words before the first are full.
#[derive(PartialEq, Eq, Hash)]
struct Tried {
    first_word: usize,
    words: Box<[u64]>,
    used: Box<[(u32, u32)]>,
    state: State,
}

/// Invocations and ends of unplaced operations in the order of time, as a doubly linked list: taking one out and
/// putting it back cost nothing. Node `2i + 1` is the invocation of operation `i`, node `2i + 2` its end.
struct Search<'a> {
    operations: &'a [(Span, Step)],
    next: Vec<usize>,
    previous: Vec<usize>,
    classes: Vec<Class>,
    placed: Vec<u64>,
    /// Words of `placed` before this one are full.
    words_full: usize,
    /// Words of `placed` from this one on are empty.
    words_begun: usize,
    /// How many unplaced operations need each value.
    needed: HashMap<u64, u32>,
    made: Vec<Move>,
    state: State,
    steps: u64,
}

const HEAD: usize = 0;

impl<'a> Search<'a> {
    fn new(operations: &'a [(Span, Step)], open: OpenOperations) -> Self {
        let tail = 2 * operations.len() + 1;
        let mut order: Vec<(u64, bool, usize)> = Vec::with_capacity(tail);
        for (index, (span, _)) in operations.iter().enumerate() {
            order.push((span.from, false, 2 * index + 1));
            // At the same instant invocations come before ends: the two operations overlap.
            order.push((span.to, true, 2 * index + 2));
        }
        order.sort_unstable();
        let (mut next, mut previous) = (vec![tail; tail + 1], vec![HEAD; tail + 1]);
        let mut last = HEAD;
        for (_, _, node) in order {
            next[last] = node;
            previous[node] = last;
            last = node;
        }
        next[last] = tail;
        previous[tail] = last;
        let mut needed = HashMap::new();
        for value in operations.iter().filter_map(|(_, step)| step.needs()) {
            *needed.entry(value).or_insert(0) += 1;
        }
        let classes = open
            .into_iter()
            .map(|(step, invocations)| Class { step, invocations, used: 0 })
            .collect();
        let placed = vec![0; operations.len().div_ceil(64)];
        Self {
            operations,
            next,
            previous,
            classes,
            placed,
            words_full: 0,
            words_begun: 0,
            needed,
            made: Vec::new(),
            state: State::Absent,
            steps: 0,
        }
    }

    fn run(mut self, bound: u64) -> Answer {
        let mut tried: HashSet<Tried> = HashSet::new();
        let mut choices: Vec<Choice> = Vec::new();
        let mut furthest = (0, 0);
        loop {
            self.place_what_only_looks();
            let Some(waiting) = self.first_to_end() else { return Answer::Linearizable };
            if self.steps > bound {
                return Answer::GivenUp;
            }
            if self.made.len() >= furthest.0 {
                furthest = (self.made.len(), self.operations[waiting].0.number);
            }
            let is_new = tried.insert(self.configuration());
            let moves = if is_new { self.moves(waiting) } else { Vec::new() };
            choices.push(Choice { state: self.state, made: self.made.len(), moves });
            if !self.try_next(&mut choices) {
                return Answer::NoOrder(furthest.1);
            }
        }
    }

    /// Makes the next untried move of the latest choice that has one; false where none is left.
    fn try_next(&mut self, choices: &mut Vec<Choice>) -> bool {
        while let Some(choice) = choices.last_mut() {
            let (state, made) = (choice.state, choice.made);
            let next = choice.moves.pop();
            self.undo_to(made);
            self.state = state;
            if let Some(next) = next {
                self.make(next);
                return true;
            }
            choices.pop();
        }
        false
    }

    /// Places every operation that may come next, fits, and can never change a state.
    fn place_what_only_looks(&mut self) {
        let mut node = self.next[HEAD];
        while let Some(index) = self.invocation_at(node) {
            let step = self.operations[index].1;
            if step.only_looks() && step.apply(self.state).is_some() {
                self.make(Move::Place(index));
            }
            node = self.next[node];
        }
    }

    /// What may come next and does not only look, the most promising last.
    fn moves(&self, waiting: usize) -> Vec<Move> {
        let mut moves = Vec::new();
        let now = self.operations[waiting].0.to;
        for (index, class) in self.classes.iter().enumerate() {
            let begun = class.invocations.get(class.used).is_some_and(|from| *from <= now);
            let changes = class.step.apply(self.state) != Some(self.state);
            if begun && changes && self.is_possible(class.step, 0) {
                moves.push(Move::Open(index));
            }
        }
        let mut places: Vec<usize> = Vec::new();
        let mut node = self.next[HEAD];
        while let Some(index) = self.invocation_at(node) {
            let (span, step) = self.operations[index];
            node = self.next[node];
            let own_need = u32::from(step.needs().is_some());
            if step.only_looks() || !self.is_possible(step, own_need) {
                continue;
            }
            match places.iter_mut().find(|same| self.operations[**same].1 == step) {
                None => places.push(index),
                Some(same) if span.to < self.operations[*same].0.to => *same = index,
                Some(_) => {}
            }
        }
        // The write that the next to end waits for, then whatever ends soonest.
        let awaited = self.operations[waiting].1.needs();
        let promise = |index: &usize| {
            let (span, step) = self.operations[*index];
            let is_awaited = awaited.is_some() && step.makes() == awaited;
            (is_awaited, std::cmp::Reverse(span.to))
        };
        places.sort_by_key(promise);
        moves.extend(places.into_iter().map(Move::Place));
        moves
    }

    /// Whether a step may happen now, and robs no other operation of the value that is there; its own need is counted
    /// among those of the unplaced operations, where it is one.
    fn is_possible(&self, step: Step, own_need: u32) -> bool {
        if step.apply(self.state).is_none() {
            return false;
        }
        let State::Value(value) = self.state else { return true };
        self.needed.get(&value).copied().unwrap_or(0) == own_need
    }

    fn make(&mut self, next: Move) {
        self.steps += 1;
        let step = match next {
            Move::Place(index) => {
                self.take_out(index);
                self.operations[index].1
            }
            Move::Open(class) => {
                self.classes[class].used += 1;
                self.classes[class].step
            }
        };
        self.state = step.apply(self.state).expect("only possible steps are made");
        self.made.push(next);
    }

    fn undo_to(&mut self, made: usize) {
        while self.made.len() > made {
            match self.made.pop() {
                Some(Move::Place(index)) => self.put_back(index),
                Some(Move::Open(class)) => self.classes[class].used -= 1,
                None => {}
            }
        }
    }

    fn take_out(&mut self, index: usize) {
        // The end first: then the invocation still points to what follows both.
        for node in [2 * index + 2, 2 * index + 1] {
            let (before, after) = (self.previous[node], self.next[node]);
            self.next[before] = after;
            self.previous[after] = before;
        }
        self.placed[index / 64] |= 1 << (index % 64);
        self.words_begun = self.words_begun.max(index / 64 + 1);
        if let Some(needed) = self.operations[index].1.needs() {
            *self.needed.entry(needed).or_insert(1) -= 1;
        }
    }

    fn put_back(&mut self, index: usize) {
        for node in [2 * index + 1, 2 * index + 2] {
            let (before, after) = (self.previous[node], self.next[node]);
            self.next[before] = node;
            self.previous[after] = node;
        }
        self.placed[index / 64] &= !(1 << (index % 64));
        self.words_full = self.words_full.min(index / 64);
        if let Some(needed) = self.operations[index].1.needs() {
            *self.needed.entry(needed).or_insert(0) += 1;
        }
    }

    /// The operation whose invocation a node is; none at an end, before which nothing else may be placed.
    fn invocation_at(&self, node: usize) -> Option<usize> {
        (node % 2 == 1 && node < 2 * self.operations.len() + 1).then(|| (node - 1) / 2)
    }

    /// The unplaced operation that ends first; none when all have their place.
    fn first_to_end(&self) -> Option<usize> {
        let mut node = self.next[HEAD];
        while self.invocation_at(node).is_some() {
            node = self.next[node];
        }
        (node < 2 * self.operations.len() + 1).then(|| (node - 2) / 2)
    }

    fn configuration(&mut self) -> Tried {
        while self.placed.get(self.words_full) == Some(&u64::MAX) {
            self.words_full += 1;
        }
        let words = &self.placed[self.words_full..self.words_begun.max(self.words_full)];
        let length = words.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        let count = |number: usize| u32::try_from(number).expect("fewer operations than that");
        let used = self.classes.iter().enumerate().filter(|(_, class)| class.used > 0);
        Tried {
            first_word: self.words_full,
            words: words[..length].into(),
            used: used.map(|(index, class)| (count(index), count(class.used))).collect(),
            state: self.state,
        }
    }
}
