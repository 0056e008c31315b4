//! Where the bytes of an extent lie in its shards.
//!
//! ```text
//! content   | stripe 0: k cells of c bytes | stripe 1 … | tail stripe: k cells of t bytes, zero-padded |
//! shard s   | cell s of stripe 0 | cell s of stripe 1 | … | cell s of the tail |       all shards equally long
//! ```
//!
//! `c` is the extent's cell size; the tail's cell is `ceil(rest / k)`, rounded up to 64 bytes.

use ashlar_types::{CELL_BYTES_MAX, Profile, Slot};

/// The tail's cell is a multiple of this: a cache line, and what SIMD engines like.
const TAIL_ALIGN_BYTES: u64 = 64;

/// The geometry of one extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    profile: Profile,
    cell_bytes: u64,
    length: u64,
}

/// A run of content bytes inside one cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CellRange {
    /// Which stripe.
    pub stripe: u64,
    /// Which data slot.
    pub slot: Slot,
    /// Where in the shard the run begins.
    pub shard_offset: u64,
    /// Where in the content it begins.
    pub content_offset: u64,
    /// How long it is.
    pub length: u64,
}

/// Which bytes of which shards rebuild a shard. Codes with local repair would name fewer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairPlan {
    /// What is rebuilt.
    pub slot: Slot,
    /// What is read for it.
    pub reads: Vec<RepairRead>,
}

/// A run of a shard that a repair reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepairRead {
    /// Which shard.
    pub slot: Slot,
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

impl Geometry {
    /// The geometry of an extent of `length` bytes with cells of `cell_bytes`.
    ///
    /// # Panics
    /// Where the cell size is 0 or over [`CELL_BYTES_MAX`]: a record that says so is refused when it is decoded.
    pub fn new(profile: Profile, cell_bytes: u32, length: u64) -> Self {
        assert!((1..=CELL_BYTES_MAX).contains(&cell_bytes), "a cell of {cell_bytes} bytes");
        Self { profile, cell_bytes: u64::from(cell_bytes), length }
    }

    /// The geometry of a new extent: cells of the greatest size.
    pub fn for_extent(profile: Profile, length: u64) -> Self {
        Self::new(profile, CELL_BYTES_MAX, length)
    }

    /// The geometry of the same extent when it ends after its first `stripes`: no cell of these lies elsewhere.
    #[must_use]
    pub fn ended_after(self, stripes: u64) -> Self {
        let length = self.length.min(stripes.saturating_mul(self.stripe_bytes()));
        Self { length, ..self }
    }

    /// The code.
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// The cell size of full stripes.
    pub fn cell_bytes(&self) -> u32 {
        u32::try_from(self.cell_bytes).expect("new() took it as u32")
    }

    /// The content's length.
    pub fn length(&self) -> u64 {
        self.length
    }

    fn data(&self) -> u64 {
        u64::from(self.profile.data)
    }

    /// Content bytes of a full stripe.
    pub fn stripe_bytes(&self) -> u64 {
        self.cell_bytes * self.data()
    }

    fn full_stripes(&self) -> u64 {
        self.length / self.stripe_bytes()
    }

    /// How many stripes there are, the tail included.
    pub fn stripes(&self) -> u64 {
        self.length.div_ceil(self.stripe_bytes())
    }

    /// The cell size of a stripe.
    pub fn cell_len(&self, stripe: u64) -> u64 {
        debug_assert!(stripe < self.stripes(), "stripe {stripe} of {}", self.stripes());
        if stripe < self.full_stripes() { self.cell_bytes } else { self.tail_cell() }
    }

    fn tail_cell(&self) -> u64 {
        let rest = self.length % self.stripe_bytes();
        rest.div_ceil(self.data()).next_multiple_of(TAIL_ALIGN_BYTES).min(self.cell_bytes)
    }

    /// Content bytes of a stripe: less than its data cells hold only in the tail.
    pub fn content_len(&self, stripe: u64) -> u64 {
        self.stripe_bytes().min(self.length - stripe * self.stripe_bytes())
    }

    /// Where a stripe's cells begin in every shard.
    pub fn shard_offset(&self, stripe: u64) -> u64 {
        stripe * self.cell_bytes
    }

    /// The length of every shard.
    pub fn shard_bytes(&self) -> u64 {
        let tail =
            if self.length.is_multiple_of(self.stripe_bytes()) { 0 } else { self.tail_cell() };
        self.full_stripes() * self.cell_bytes + tail
    }

    /// The cells that hold `length` content bytes from `offset` on, in content order.
    pub fn locate(&self, offset: u64, length: u64) -> impl Iterator<Item = CellRange> + use<> {
        let geometry = *self;
        let end = offset.saturating_add(length).min(self.length);
        let mut at = offset;
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let range = geometry.cell_at(at, end);
                at += range.length;
                range
            })
        })
    }

    fn cell_at(&self, at: u64, end: u64) -> CellRange {
        let stripe = at / self.stripe_bytes();
        let cell = self.cell_len(stripe);
        let inside = at - stripe * self.stripe_bytes();
        let (slot, within) = (inside / cell, inside % cell);
        CellRange {
            stripe,
            slot: Slot(u8::try_from(slot).expect("a data slot is less than k, which is a u8")),
            shard_offset: self.shard_offset(stripe) + within,
            content_offset: at,
            length: (cell - within).min(end - at),
        }
    }

    /// What to read to rebuild `slot` from the first k of `present`. `None`: fewer than k are there.
    pub fn repair_plan(
        &self,
        slot: Slot,
        present: impl IntoIterator<Item = Slot>,
    ) -> Option<RepairPlan> {
        let length = self.shard_bytes();
        let read = |slot| RepairRead { slot, offset: 0, length };
        let wanted = usize::from(self.profile.data);
        let reads: Vec<RepairRead> =
            present.into_iter().filter(|&other| other != slot).take(wanted).map(read).collect();
        (reads.len() == wanted).then_some(RepairPlan { slot, reads })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn profiles() -> impl Strategy<Value = Profile> {
        prop::sample::select(vec![
            Profile::RS_4_2,
            Profile::RS_1_2,
            Profile::RS_2_1,
            Profile::RS_1_0,
        ])
    }

    #[test]
    fn the_edges_of_cells_and_stripes() {
        let shard = |length| Geometry::for_extent(Profile::RS_4_2, length).shard_bytes();
        let cell = u64::from(CELL_BYTES_MAX);
        assert_eq!([shard(0), shard(1), shard(256), shard(257)], [0, 64, 64, 128]);
        assert_eq!(
            [shard(4 * cell), shard(4 * cell + 1), shard(64 << 20)],
            [cell, cell + 64, 16 << 20]
        );
        assert_eq!(shard(4 * cell - 1), cell, "a tail that is nearly full has full cells");
    }

    #[test]
    fn a_repair_reads_k_whole_shards() {
        let geometry = Geometry::for_extent(Profile::RS_4_2, 1 << 20);
        let plan =
            geometry.repair_plan(Slot(1), Profile::RS_4_2.slots()).expect("enough are there");
        assert_eq!(plan.reads.iter().map(|read| read.slot.0).collect::<Vec<_>>(), [0, 2, 3, 4]);
        assert_eq!(geometry.repair_plan(Slot(0), [Slot(1), Slot(2), Slot(3)]), None);
    }

    proptest! {
        #[test]
        fn an_extent_that_ends_early_has_its_stripes_where_they_were(
            profile in profiles(), length in 1_u64..9_000_000, stripes in 0_u64..20,
        ) {
            let whole = Geometry::for_extent(profile, length);
            let ended = whole.ended_after(stripes);
            let kept = stripes.min(whole.stripes());
            prop_assert_eq!(ended.stripes(), kept);
            let mut shard_bytes = 0;
            for stripe in 0..kept {
                prop_assert_eq!(ended.cell_len(stripe), whole.cell_len(stripe));
                prop_assert_eq!(ended.content_len(stripe), whole.content_len(stripe));
                prop_assert_eq!(ended.shard_offset(stripe), shard_bytes);
                shard_bytes += whole.cell_len(stripe);
            }
            prop_assert_eq!(ended.shard_bytes(), shard_bytes, "what each home has received until then");
            prop_assert_eq!(whole.ended_after(whole.stripes()), whole);
        }

        #[test]
        fn cells_cover_a_range_once_and_in_order(
            profile in profiles(),
            cell in prop::sample::select(vec![64_u32, 4096, CELL_BYTES_MAX]),
            length in 0_u64..3_000_000,
            offset in 0_u64..3_000_000,
            count in 0_u64..3_000_000,
        ) {
            let geometry = Geometry::new(profile, cell, length);
            let mut at = offset;
            for range in geometry.locate(offset, count).take(100_000) {
                prop_assert_eq!(range.content_offset, at);
                prop_assert!(range.length > 0 && range.slot.0 < profile.data);
                let cell_start = geometry.shard_offset(range.stripe);
                let cell_end = cell_start + geometry.cell_len(range.stripe);
                prop_assert!(cell_start <= range.shard_offset && range.shard_offset + range.length <= cell_end);
                prop_assert!(range.shard_offset + range.length <= geometry.shard_bytes());
                at += range.length;
            }
            let expected = (offset + count).min(length).saturating_sub(offset);
            prop_assert_eq!(at - offset, expected);
        }
    }
}
