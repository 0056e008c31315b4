//! The code over the cells of a stripe: parity from data, and any cell from k others.

use ashlar_types::{Profile, Slot};
use reed_solomon_erasure::galois_8::ReedSolomon;
use rusty_erasure::Coder;
use rusty_erasure::compat::reed_solomon_erasure_matrix;
use std::sync::{Arc, OnceLock};

/// Who computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// The SIMD engine.
    Simd,
    /// reed-solomon-erasure itself.
    Plain,
}

/// Why cells could not be computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Fewer than k cells are there.
    #[error("{present} cells are there, {needed} are needed")]
    TooFew {
        /// How many there are.
        present: usize,
        /// k.
        needed: usize,
    },
    /// The buffers do not fit the profile or each other: a mistake of the caller.
    #[error("the buffers do not fit: {0}")]
    Shape(String),
}

/// The code of one profile. Cheap to clone.
#[derive(Clone)]
pub struct Codec(Arc<Inner>);

struct Inner {
    profile: Profile,
    code: Code,
}

enum Code {
    /// m = 0: there is nothing to compute.
    Bare,
    /// k = 1: every parity cell is the data cell (the code's own matrix says so).
    Copies,
    Simd(Box<Coder>),
    Plain(Box<ReedSolomon>),
}

impl std::fmt::Debug for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Codec({})", self.0.profile)
    }
}

impl Codec {
    /// The code of a profile, by the engine that the start-up check has chosen.
    pub fn new(profile: Profile) -> Self {
        Self::with_engine(profile, chosen_engine())
    }

    /// The code of a profile, by this engine.
    pub fn with_engine(profile: Profile, engine: Engine) -> Self {
        let (data, parity) = (usize::from(profile.data), usize::from(profile.parity));
        let code = match (parity, data, engine) {
            (0, _, _) => Code::Bare,
            (_, 1, _) => Code::Copies,
            (_, _, Engine::Simd) => {
                simd(data, parity).map_or_else(|| plain(data, parity), Code::Simd)
            }
            (_, _, Engine::Plain) => plain(data, parity),
        };
        Self(Arc::new(Inner { profile, code }))
    }

    /// Its profile.
    pub fn profile(&self) -> Profile {
        self.0.profile
    }

    /// Whether the SIMD engine computes: it does not where it refuses the profile, or where nothing is computed.
    pub fn is_simd(&self) -> bool {
        matches!(self.0.code, Code::Simd(_))
    }

    /// Computes the parity cells of a stripe. All buffers are equally long.
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<(), CodecError> {
        self.check_shape(data, parity)?;
        match &self.0.code {
            Code::Bare => Ok(()),
            Code::Copies => {
                parity.iter_mut().for_each(|cell| cell.copy_from_slice(data[0]));
                Ok(())
            }
            Code::Simd(coder) => {
                coder.encode(data, parity).map_err(|error| CodecError::Shape(error.to_string()))
            }
            Code::Plain(code) => {
                code.encode_sep(data, parity).map_err(|error| CodecError::Shape(error.to_string()))
            }
        }
    }

    fn check_shape(&self, data: &[&[u8]], parity: &[&mut [u8]]) -> Result<(), CodecError> {
        let profile = self.0.profile;
        let counts_fit =
            data.len() == usize::from(profile.data) && parity.len() == usize::from(profile.parity);
        let length = data.first().map_or(0, |cell| cell.len());
        let lengths_fit = data.iter().all(|cell| cell.len() == length)
            && parity.iter().all(|cell| cell.len() == length);
        if counts_fit && lengths_fit {
            return Ok(());
        }
        Err(CodecError::Shape(format!(
            "{} data and {} parity cells for {profile}",
            data.len(),
            parity.len()
        )))
    }

    /// Computes the cells `wanted` into `out` from those of `cells` that are there; a slot is an index into `cells`.
    pub fn rebuild(
        &self,
        cells: &[Option<&[u8]>],
        wanted: &[Slot],
        out: &mut [&mut [u8]],
    ) -> Result<(), CodecError> {
        let needed = usize::from(self.0.profile.data);
        let present = cells.iter().flatten().count();
        if present < needed {
            return Err(CodecError::TooFew { present, needed });
        }
        if cells.len() != usize::from(self.0.profile.width()) || wanted.len() != out.len() {
            return Err(CodecError::Shape(format!(
                "{} cells, {} wanted, {} out",
                cells.len(),
                wanted.len(),
                out.len()
            )));
        }
        // the SIMD engine panics where lengths differ
        let length = cells.iter().flatten().next().map_or(0, |cell| cell.len());
        let fits = |found: usize| found == length;
        if !cells.iter().flatten().all(|cell| fits(cell.len()))
            || !out.iter().all(|cell| fits(cell.len()))
        {
            return Err(CodecError::Shape(format!("cells of {length} bytes and others")));
        }
        let wanted: Vec<usize> = wanted.iter().map(|slot| usize::from(slot.0)).collect();
        if let Some(slot) = wanted.iter().find(|&&slot| slot >= cells.len()) {
            return Err(CodecError::Shape(format!("slot {slot} of {}", self.0.profile)));
        }
        match &self.0.code {
            Code::Bare => rebuild_copies(cells, &wanted, out),
            Code::Copies => rebuild_copies(
                &cells.iter().map(|_| cells.iter().flatten().next().copied()).collect::<Vec<_>>(),
                &wanted,
                out,
            ),
            Code::Simd(coder) => rebuild_simd(coder, cells, &wanted, out),
            Code::Plain(code) => rebuild_plain(code, cells, &wanted, out),
        }
    }
}

fn rebuild_copies(
    cells: &[Option<&[u8]>],
    wanted: &[usize],
    out: &mut [&mut [u8]],
) -> Result<(), CodecError> {
    for (&slot, target) in wanted.iter().zip(out) {
        let source = cells.get(slot).copied().flatten();
        let source = source.filter(|cell| cell.len() == target.len());
        target.copy_from_slice(
            source.ok_or_else(|| CodecError::Shape(format!("no cell for slot {slot}")))?,
        );
    }
    Ok(())
}

fn rebuild_simd(
    coder: &Coder,
    cells: &[Option<&[u8]>],
    wanted: &[usize],
    out: &mut [&mut [u8]],
) -> Result<(), CodecError> {
    let (mut lost, mut targets): (Vec<usize>, Vec<&mut [u8]>) = (Vec::new(), Vec::new());
    for (&slot, target) in wanted.iter().zip(out) {
        match cells[slot] {
            Some(cell) => target.copy_from_slice(cell),
            None => {
                lost.push(slot);
                targets.push(target);
            }
        }
    }
    // the engine panics where nothing is asked of it
    if lost.is_empty() {
        return Ok(());
    }
    coder.recover(cells, &lost, &mut targets).map_err(|error| CodecError::Shape(error.to_string()))
}

fn rebuild_plain(
    code: &ReedSolomon,
    cells: &[Option<&[u8]>],
    wanted: &[usize],
    out: &mut [&mut [u8]],
) -> Result<(), CodecError> {
    let mut all: Vec<Option<Vec<u8>>> = cells.iter().map(|cell| cell.map(<[u8]>::to_vec)).collect();
    code.reconstruct(&mut all).map_err(|error| CodecError::Shape(error.to_string()))?;
    let whole: Vec<Option<&[u8]>> = all.iter().map(Option::as_deref).collect();
    rebuild_copies(&whole, wanted, out)
}

fn simd(data: usize, parity: usize) -> Option<Box<Coder>> {
    let matrix = reed_solomon_erasure_matrix(data, parity).ok()?;
    rusty_erasure::coder(matrix).ok().map(Box::new)
}

fn plain(data: usize, parity: usize) -> Code {
    let code =
        ReedSolomon::new(data, parity).expect("a profile has 1 to 32 shards, at least one of data");
    Code::Plain(Box::new(code))
}

/// The engine of this process: SIMD, if it computes on this CPU what reed-solomon-erasure computes. Checked once.
pub fn chosen_engine() -> Engine {
    static CHOSEN: OnceLock<Engine> = OnceLock::new();
    *CHOSEN.get_or_init(|| if engines_agree() { Engine::Simd } else { Engine::Plain })
}

/// Encodes and rebuilds one pattern with both engines, over lengths that leave every kind of remainder.
fn engines_agree() -> bool {
    [Profile::RS_4_2, Profile::RS_2_1].into_iter().all(|profile| {
        [64, 4096 + 64 + 17].into_iter().all(|length| {
            let engines = [Engine::Simd, Engine::Plain];
            let [simd, plain] =
                engines.map(|engine| sample(&Codec::with_engine(profile, engine), length));
            simd.is_some() && simd == plain && Codec::with_engine(profile, Engine::Simd).is_simd()
        })
    })
}

fn sample(codec: &Codec, length: usize) -> Option<Vec<Vec<u8>>> {
    let profile = codec.profile();
    let pattern = |cell: usize| {
        (0..length).map(|at| (at * 31 + cell * 7 + at / 251).to_le_bytes_low()).collect()
    };
    let data: Vec<Vec<u8>> = (0..usize::from(profile.data)).map(pattern).collect();
    let mut parity = vec![vec![0; length]; usize::from(profile.parity)];
    let sources: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
    codec
        .encode(&sources, &mut parity.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>())
        .ok()?;
    let mut cells: Vec<Option<&[u8]>> =
        data.iter().chain(&parity).map(|cell| Some(cell.as_slice())).collect();
    cells[0] = None;
    let mut rebuilt = vec![0; length];
    codec.rebuild(&cells, &[Slot(0)], &mut [&mut rebuilt]).ok()?;
    (rebuilt == data[0]).then_some(parity)
}

trait LowByte {
    /// The lowest byte.
    fn to_le_bytes_low(self) -> u8;
}

impl LowByte for usize {
    fn to_le_bytes_low(self) -> u8 {
        u8::try_from(self & 0xff).expect("masked to a byte")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PROFILES: [Profile; 6] = [
        Profile::RS_4_2,
        Profile::RS_1_2,
        Profile::RS_2_1,
        Profile::RS_1_1,
        Profile::RS_1_0,
        Profile { data: 8, parity: 3 },
    ];

    fn stripe(profile: Profile, length: usize, seed: u8) -> Vec<Vec<u8>> {
        let byte = |cell: usize, at: usize| {
            (at.wrapping_mul(167) ^ cell.wrapping_mul(59)).to_le_bytes_low() ^ seed
        };
        (0..usize::from(profile.data))
            .map(|cell| (0..length).map(|at| byte(cell, at)).collect())
            .collect()
    }

    fn parity(codec: &Codec, data: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut parity = vec![vec![0; data[0].len()]; usize::from(codec.profile().parity)];
        let sources: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        let mut targets: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
        codec.encode(&sources, &mut targets).expect("the shapes fit");
        parity
    }

    #[test]
    fn the_simd_engine_agrees_with_the_definition_and_computes() {
        assert_eq!(
            chosen_engine(),
            Engine::Simd,
            "it has kernels for every CPU, so a refusal is a finding"
        );
        let wide = [Profile::RS_4_2, Profile::RS_2_1, Profile { data: 8, parity: 3 }];
        assert!(wide.into_iter().all(|profile| Codec::new(profile).is_simd()));
    }

    #[test]
    fn where_nothing_is_lost_cells_are_copied() {
        let codec = Codec::new(Profile::RS_2_1);
        let cells = [Some([1_u8; 64].as_slice()), Some(&[2; 64]), Some(&[3; 64])];
        let mut out = [0; 64];
        assert_eq!(codec.rebuild(&cells, &[Slot(1)], &mut [&mut out]), Ok(()));
        assert_eq!(out, [2; 64]);
        assert_eq!(codec.rebuild(&cells, &[], &mut []), Ok(()));
    }

    #[test]
    fn cells_of_different_lengths_are_refused() {
        for engine in [Engine::Simd, Engine::Plain] {
            let codec = Codec::with_engine(Profile::RS_2_1, engine);
            let rebuilt = |cells: &[Option<&[u8]>], length: usize| {
                codec.rebuild(cells, &[Slot(0)], &mut [&mut vec![0; length]])
            };
            let cells = [None, Some([2; 64].as_slice()), Some([3; 63].as_slice())];
            assert!(matches!(rebuilt(&cells, 64), Err(CodecError::Shape(_))), "cells differ");
            let cells = [None, Some([2; 64].as_slice()), Some([3; 64].as_slice())];
            assert!(matches!(rebuilt(&cells, 65), Err(CodecError::Shape(_))), "the target differs");
        }
    }

    #[test]
    fn a_slot_that_is_none_is_refused() {
        let cells = [Some([1_u8; 64].as_slice()), None, None];
        let refused = Codec::new(Profile::RS_1_2).rebuild(&cells, &[Slot(3)], &mut [&mut [0; 64]]);
        assert!(matches!(refused, Err(CodecError::Shape(_))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn every_engine_computes_the_bytes_of_reed_solomon_erasure(
            profile in prop::sample::select(PROFILES.to_vec()), length in 1_usize..9000, seed: u8,
        ) {
            let data = stripe(profile, length, seed);
            let ours = parity(&Codec::new(profile), &data);
            if profile.parity > 0 {
                let oracle = ReedSolomon::new(profile.data.into(), profile.parity.into()).expect("fits");
                let mut theirs = vec![vec![0; length]; profile.parity.into()];
                oracle.encode_sep(&data, &mut theirs).expect("fits");
                prop_assert_eq!(&ours, &theirs);
            }
            prop_assert_eq!(ours, parity(&Codec::with_engine(profile, Engine::Plain), &data));
        }

        #[test]
        fn any_k_cells_give_back_all_the_others(
            profile in prop::sample::select(PROFILES.to_vec()), length in 1_usize..3000, lost: u16, plain: bool,
        ) {
            let engine = if plain { Engine::Plain } else { Engine::Simd };
            let codec = Codec::with_engine(profile, engine);
            let data = stripe(profile, length, 3);
            let whole: Vec<Vec<u8>> = data.iter().chain(&parity(&codec, &data)).cloned().collect();
            let gone = |slot: usize| lost & (1 << slot) != 0;
            let cells: Vec<Option<&[u8]>> =
                whole.iter().enumerate().map(|(slot, cell)| (!gone(slot)).then_some(cell.as_slice())).collect();
            let wanted: Vec<Slot> = profile.slots().collect();
            let mut out = vec![vec![0; length]; whole.len()];
            let mut targets: Vec<&mut [u8]> = out.iter_mut().map(Vec::as_mut_slice).collect();
            let done = codec.rebuild(&cells, &wanted, &mut targets);
            if cells.iter().flatten().count() >= usize::from(profile.data) {
                prop_assert_eq!(done, Ok(()));
                prop_assert_eq!(out, whole);
            } else {
                let too_few = matches!(done, Err(CodecError::TooFew { .. }));
                prop_assert!(too_few);
            }
        }
    }
}
