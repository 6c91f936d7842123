//! A moment of the window's clock, as a number that can be passed to code that must not read a
//! clock.

/// Monotonic milliseconds since the service started, modulo 2^32. Differences are right up to 24
/// days.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Millis(pub u32);

impl Millis {
    /// Milliseconds from `earlier` to this; 0 if `earlier` is later.
    pub(crate) fn since(self, earlier: Millis) -> u32 {
        let difference = self.0.wrapping_sub(earlier.0);
        if difference > u32::MAX / 2 { 0 } else { difference }
    }

    /// This much later.
    pub(crate) fn after(self, millis: u32) -> Millis {
        Millis(self.0.wrapping_add(millis))
    }

    /// Whether this moment has been reached at `now`.
    pub(crate) fn is_due(self, now: Millis) -> bool {
        now.0.wrapping_sub(self.0) <= u32::MAX / 2
    }
}
