//! The values of `reason` labels: why requests were refused and spans were lost.

/// Why a whole request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefusedBecause {
    /// The memory limit was reached.
    Memory = 0,
    /// The sending queue was nearly full.
    QueueFull = 1,
    /// The service was shutting down.
    Draining = 2,
    /// The request was larger than allowed.
    TooLarge = 3,
    /// The request could not be decoded.
    Malformed = 4,
    /// The credentials were missing or wrong.
    Unauthenticated = 5,
    /// The body did not arrive in time, or its turn did not come in time (large bodies wait for
    /// one).
    Timeout = 6,
    /// The request had more headers or gRPC metadata than allowed.
    HeadersTooLarge = 7,
    /// The directory of `[durability]` was full, or its disk failed.
    Disk = 8,
}

pub(super) const REFUSED: [&str; 9] = [
    "memory",
    "queue_full",
    "draining",
    "too_large",
    "malformed",
    "unauthenticated",
    "timeout",
    "headers_too_large",
    "disk",
];

/// Why spans of an accepted request were refused. `too_large` means that their resource or scope is
/// larger than allowed.
pub(super) const REFUSED_SPANS: [&str; 2] = ["invalid_id", "too_large"];

/// Why kept spans did not reach the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailedBecause {
    /// The sending queue was full, with `overflow = "drop"`.
    QueueFull = 0,
    /// The backend refused them for good.
    Rejected = 1,
    /// The backend accepted the request but not these spans.
    PartialSuccess = 2,
    /// The spans cannot be made valid.
    Malformed = 3,
    /// The backend said that the request is too large.
    TooLarge = 4,
    /// `max_elapsed_time` ran out.
    RetryExpired = 5,
    /// The service stopped first.
    Shutdown = 6,
}

pub(super) const FAILED: [&str; 7] = [
    "queue_full",
    "rejected",
    "partial_success",
    "malformed",
    "too_large",
    "retry_expired",
    "shutdown",
];
