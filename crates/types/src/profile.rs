//! Profiles RS(k+m), and the sets of slots of an extent.

use crate::Slot;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How an extent is coded: `data` cells and `parity` cells a stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Profile {
    /// k: as many shards suffice to read.
    pub data: u8,
    /// m: as many shards may be lost.
    pub parity: u8,
}

impl Profile {
    /// From six nodes, or three zones of two.
    pub const RS_4_2: Self = Self { data: 4, parity: 2 };
    /// Three copies: small objects, and the fallback when no wide placement group lives.
    pub const RS_1_2: Self = Self { data: 1, parity: 2 };
    /// On three nodes.
    pub const RS_2_1: Self = Self { data: 2, parity: 1 };
    /// On two disks.
    pub const RS_1_1: Self = Self { data: 1, parity: 1 };
    /// On a single disk: nothing survives its loss.
    pub const RS_1_0: Self = Self { data: 1, parity: 0 };

    /// k + m.
    pub fn width(self) -> u8 {
        self.data + self.parity
    }

    /// The fewest acknowledged shards with which a write may succeed: k+1, or k where nothing is redundant (D1).
    pub fn acks_min(self) -> u8 {
        if self.parity == 0 { self.data } else { self.data + 1 }
    }

    /// All slots, in order.
    pub fn slots(self) -> impl DoubleEndedIterator<Item = Slot> + ExactSizeIterator {
        (0..self.width()).map(Slot)
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.data, self.parity)
    }
}

/// Text that is not a profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a profile: write k+m, as in 4+2, with at least one data shard and at most 32 in all"
)]
pub struct BadProfile(String);

impl std::str::FromStr for Profile {
    type Err = BadProfile;
    fn from_str(text: &str) -> Result<Self, BadProfile> {
        let bad = || BadProfile(text.to_owned());
        let (data, parity) = text.split_once('+').ok_or_else(bad)?;
        let profile = Self {
            data: data.parse().map_err(|_| bad())?,
            parity: parity.parse().map_err(|_| bad())?,
        };
        let width = u16::from(profile.data) + u16::from(profile.parity);
        if profile.data >= 1 && width <= 32 { Ok(profile) } else { Err(bad()) }
    }
}

/// A set of slots of one extent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct SlotSet(u32);

impl SlotSet {
    /// No slot.
    pub const EMPTY: Self = Self(0);

    /// Adds a slot.
    pub fn insert(&mut self, slot: Slot) {
        self.0 |= 1 << slot.0;
    }

    /// Takes a slot out.
    pub fn remove(&mut self, slot: Slot) {
        self.0 &= !(1 << slot.0);
    }

    /// Whether it has the slot.
    pub fn contains(self, slot: Slot) -> bool {
        self.0 & (1 << slot.0) != 0
    }

    /// How many slots it has.
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether it has none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Its slots, in order.
    pub fn iter(self) -> impl Iterator<Item = Slot> {
        (0..32).map(Slot).filter(move |&slot| self.contains(slot))
    }
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        let mut set = Self::EMPTY;
        slots.into_iter().for_each(|slot| set.insert(slot));
        set
    }
}

impl fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|slot| slot.0)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_parse_and_print() {
        assert_eq!("4+2".parse(), Ok(Profile::RS_4_2));
        assert_eq!(Profile::RS_4_2.to_string(), "4+2");
        for bad in ["0+2", "4", "4-2", "30+3", "a+b", ""] {
            assert!(bad.parse::<Profile>().is_err(), "{bad}");
        }
        assert_eq!(
            [Profile::RS_4_2, Profile::RS_1_2, Profile::RS_1_0].map(Profile::acks_min),
            [5, 2, 1]
        );
    }

    #[test]
    fn slot_sets() {
        let mut set: SlotSet = [Slot(1), Slot(5)].into_iter().collect();
        assert_eq!((set.count(), set.contains(Slot(5)), set.contains(Slot(0))), (2, true, false));
        set.remove(Slot(5));
        assert_eq!(format!("{set:?}"), "{1}");
    }
}
