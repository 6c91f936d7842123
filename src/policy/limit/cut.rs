//! The result of a tick: the bar that candidates must clear, and the threshold that follows from it
//! for each share.
//!
//! Candidates are ordered by `z = (1 - randomness / 2^56) / share`, lowest first, compared in
//! integers. A candidate is kept if its `z` is below that of the first candidate that does not fit,
//! so each share has one threshold. If all shares are 1, this is the order from the highest
//! randomness down.

use crate::trace::{Randomness, Threshold};

/// The part of its traces that a kind may keep, in units of 2^-32, at least one unit. It may be
/// more than 1: such a kind stays below the level, and how far below decides its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Share(u64);

impl Share {
    /// All traces.
    pub(super) const WHOLE: Share = Share(1 << 32);
    /// Products of a share and a randomness fit 128 bits.
    const UNITS_MAX: f64 = (1_u64 << 62) as f64;

    pub(super) fn of(part: f64) -> Share {
        let units = part * Share::WHOLE.0 as f64;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the number is clamped to 1..=2^62"
        )]
        let units = units.clamp(1.0, Share::UNITS_MAX) as u64;
        Share(units)
    }

    fn part(self) -> f64 {
        self.0 as f64 / Share::WHOLE.0 as f64
    }
}

/// The bar of a tick.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bar {
    /// Every candidate is kept.
    None,
    /// Every candidate is kept with its share as the probability.
    Shares,
    /// The candidates that are luckier than this one are kept.
    Cut(Luck),
    /// Every candidate is kept with this multiple of its share, at most 1, as the probability.
    Times(f64),
}

/// How far a candidate is from the highest randomness, relative to its share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Luck {
    /// 2^56 minus the randomness; 1 is the best.
    distance: u64,
    share: Share,
}

impl Luck {
    pub(super) fn of(randomness: Randomness, share: Share) -> Self {
        Luck { distance: Threshold::NEVER.bits() - randomness.0, share }
    }

    /// Whether the share alone keeps the candidate.
    pub(super) fn is_in_share(self) -> bool {
        self.distance <= kept_by(self.share)
    }

    /// Compares `z`.
    pub(super) fn cmp(self, other: Luck) -> std::cmp::Ordering {
        let product = |luck: Luck, by: Share| u128::from(luck.distance) * u128::from(by.0);
        product(self, other.share).cmp(&product(other, self.share))
    }
}

/// The number of randomness values that a share keeps.
fn kept_by(share: Share) -> u64 {
    share.min(Share::WHOLE).0 << 24
}

impl Bar {
    /// The threshold for candidates with this share. It is never [`Threshold::NEVER`].
    pub(super) fn threshold(self, share: Share) -> Threshold {
        let never = Threshold::NEVER.bits();
        let kept = match self {
            Bar::None => never,
            Bar::Shares => kept_by(share),
            Bar::Cut(luck) => {
                // Kept if distance * luck.share < luck.distance * share.
                let product = u128::from(luck.distance) * u128::from(share.0);
                let beyond = product.div_ceil(u128::from(luck.share.0));
                u64::try_from(beyond - 1).unwrap_or(never).clamp(1, never)
            }
            Bar::Times(factor) => {
                let threshold = Threshold::from_percentage(factor * share.part() * 100.0);
                (never - threshold.bits()).max(1)
            }
        };
        Threshold::from_bits(never - kept)
    }
}
