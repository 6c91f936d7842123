//! Numbers in attributes and bounds: integers and doubles in one order.
//!
//! The order is that of the exact values. An `i64` beyond 2^53 is never rounded to a double,
//! because identifiers and byte counts of that size would then equal their neighbours.

use std::{
    cmp::Ordering,
    fmt,
    ops::{
        Bound::{self, Excluded, Included, Unbounded},
        RangeBounds as _,
    },
};

/// An integer or a double.
#[derive(Clone, Copy, Debug)]
pub enum Number {
    /// Any `i64`.
    Int(i64),
    /// Any `f64`. NaN is neither equal to, below nor above any number.
    Double(f64),
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (*self, *other) {
            (Number::Int(a), Number::Int(b)) => Some(a.cmp(&b)),
            (Number::Double(a), Number::Double(b)) => a.partial_cmp(&b),
            (Number::Int(a), Number::Double(b)) => compare(a, b),
            (Number::Double(a), Number::Int(b)) => compare(b, a).map(Ordering::reverse),
        }
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.partial_cmp(other) == Some(Ordering::Equal)
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Number::Int(number) => write!(f, "{number}"),
            Number::Double(number) => write!(f, "{number:?}"),
        }
    }
}

/// Compares without rounding either number.
fn compare(int: i64, double: f64) -> Option<Ordering> {
    const TWO_TO_63: f64 = 9_223_372_036_854_775_808.0;
    if double.is_nan() {
        return None;
    }
    if double >= TWO_TO_63 {
        return Some(Ordering::Less);
    }
    if double < -TWO_TO_63 {
        return Some(Ordering::Greater);
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "it lies in -2^63..2^63 and has no fraction"
    )]
    let whole = double.trunc() as i64;
    int.cmp(&whole).then_with(|| 0.0.partial_cmp(&double.fract()).unwrap_or(Ordering::Equal)).into()
}

/// Bounds, at least one of which is set; neither is NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NumberRange {
    /// The lower bound.
    pub lower: Bound<Number>,
    /// The upper bound.
    pub upper: Bound<Number>,
}

impl NumberRange {
    /// Whether the number is within the bounds; NaN never is.
    pub(crate) fn contains(&self, number: Number) -> bool {
        (self.lower, self.upper).contains(&number)
    }

    /// Whether `other` contains every number that this range contains, as far as the bounds tell.
    pub(crate) fn is_within(&self, other: &NumberRange) -> bool {
        is_within(self.lower, other.lower, Ordering::Greater)
            && is_within(self.upper, other.upper, Ordering::Less)
    }
}

/// Whether a bound is within the other one; `inwards` is the comparison result of a bound that is
/// further inside.
fn is_within(bound: Bound<Number>, other: Bound<Number>, inwards: Ordering) -> bool {
    let (number, other, may_be_equal) = match (bound, other) {
        (_, Unbounded) => return true,
        (Unbounded, _) => return false,
        (Included(number), Excluded(other)) => (number, other, false),
        (Included(number) | Excluded(number), Included(other) | Excluded(other)) => {
            (number, other, true)
        }
    };
    match number.partial_cmp(&other) {
        Some(Ordering::Equal) => may_be_equal,
        found => found == Some(inwards),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_and_doubles_compare_without_rounding() {
        let (int, double) = (Number::Int, Number::Double);
        let ascending = [
            double(f64::NEG_INFINITY),
            double(-1e19),
            int(i64::MIN),
            int(i64::MIN + 1),
            double(-2.5),
            int(-2),
            double(-1.5),
            int(-1),
            double(-0.5),
            int(0),
            double(f64::MIN_POSITIVE),
            double(0.5),
            int(1),
            int((1 << 53) - 1),
            int(1 << 53),
            int((1 << 53) + 1),
            double(((1u64 << 53) + 2) as f64),
            int(i64::MAX - 1),
            int(i64::MAX),
            double((1u64 << 63) as f64),
            double(f64::INFINITY),
        ];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(a.partial_cmp(b), Some(i.cmp(&j)), "{a} {b}");
            }
        }
        for (a, b) in [(int(1), double(1.0)), (int(i64::MIN), double(i64::MIN as f64))] {
            assert_eq!(a, b);
        }
        assert_eq!(double(-0.0), int(0));
        for number in [int(0), double(0.0), double(f64::NAN)] {
            assert_eq!(number.partial_cmp(&double(f64::NAN)), None);
        }
    }

    #[test]
    fn ranges_include_their_bounds_or_not() {
        let (two, four) = (Number::Int(2), Number::Double(4.5));
        let ranges = [
            (Unbounded, Included(four)),
            (Included(two), Unbounded),
            (Included(two), Included(four)),
            (Unbounded, Excluded(four)),
            (Excluded(two), Unbounded),
            (Excluded(two), Excluded(four)),
        ];
        for (number, expected) in [
            (Number::Double(1.9), [true, false, false, true, false, false]),
            (Number::Double(2.0), [true, true, true, true, false, false]),
            (Number::Int(4), [true; 6]),
            (Number::Double(4.5), [true, true, true, false, true, false]),
            (Number::Int(5), [false, true, false, false, true, false]),
            (Number::Double(f64::INFINITY), [false, true, false, false, true, false]),
            (Number::Double(f64::NAN), [false; 6]),
        ] {
            let found = ranges.map(|(lower, upper)| NumberRange { lower, upper }.contains(number));
            assert_eq!(found, expected, "{number}");
        }
    }

    #[test]
    fn a_range_within_another_has_no_number_of_its_own() {
        let numbers = [1, 2, 3, 4, 5].map(Number::Int);
        let bounds = || {
            let set = numbers[1..4].iter().flat_map(|&n| [Included(n), Excluded(n)]);
            set.chain([Unbounded])
        };
        let mut within = 0;
        let ranges =
            || bounds().flat_map(|lower| bounds().map(move |upper| NumberRange { lower, upper }));
        for one in ranges() {
            for other in ranges().filter(|other| one.is_within(other)) {
                within += 1;
                let own = numbers.iter().find(|&&n| one.contains(n) && !other.contains(n));
                assert!(own.is_none(), "{one:?} {other:?} {own:?}");
            }
            assert!(one.is_within(&one));
        }
        assert_eq!(within, 28 * 28);
    }
}
