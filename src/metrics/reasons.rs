//! Why requests were refused and spans were lost: the values of `reason` labels.

/// Why a whole request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefusedBecause {
    /// The memory limit.
    Memory = 0,
    /// The sending queue is nearly full.
    QueueFull = 1,
    /// The service is shutting down.
    Draining = 2,
    /// Larger than a message may be.
    TooLarge = 3,
    /// Undecodable.
    Malformed = 4,
    /// Missing or wrong credentials.
    Unauthenticated = 5,
    /// Its body, or the turn that a large one waits for, did not come in time.
    Timeout = 6,
    /// More headers or gRPC metadata than is taken.
    HeadersTooLarge = 7,
    /// The directory of `[durability]` is full, or its disk fails.
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

/// Why spans were refused of a request that was taken: `too_large` are those whose resource or
/// scope is larger than one may be.
pub(super) const REFUSED_SPANS: [&str; 2] = ["invalid_id", "too_large"];

/// Why kept spans did not reach the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailedBecause {
    /// The sending queue was full, with `overflow = "drop"`.
    QueueFull = 0,
    /// The backend refused them for good.
    Rejected = 1,
    /// The backend took the request but not these.
    PartialSuccess = 2,
    /// They cannot be made valid.
    Malformed = 3,
    /// The backend calls the request too large.
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
