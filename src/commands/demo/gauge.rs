//! Reads the service's metrics frame by frame, and remembers enough frames for a rate.
//!
//! It reads the source of the admin listener's answers and not the listener itself. The last
//! reading is taken after the service has shut down, since only then is the ledger at rest.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::figures::Figures;
use crate::{admin::Admin, clock::Clock, config::Config, service::Service, trace::TraceId};

/// Frames over which the rate is taken. Over a single frame, it would mostly show when requests
/// arrive.
const RATE_FRAMES: usize = 5;
/// A trace to look up stays the same for this many frames, which leaves time to copy it.
const EXAMPLE_FRAMES: u64 = 15;

#[derive(Debug)]
pub(super) struct Gauge {
    admin: Arc<Admin>,
    clock: Clock,
    rows: Vec<String>,
    pub(super) figures: Figures,
    /// The time since the gauge was made.
    pub(super) elapsed: Duration,
    /// The times of the last frames, each with the spans accepted until then.
    past: VecDeque<(Duration, u64)>,
    /// A trace that the user may look up.
    pub(super) example: Option<TraceId>,
    frames: u64,
}

impl Gauge {
    /// A gauge that starts counting now.
    pub(super) fn new(config: &Config, service: &Service) -> Self {
        let names = config.policies.iter().map(|policy| policy.name.clone());
        let rows = names.chain(["none".to_owned()]).collect();
        Gauge {
            admin: Arc::clone(service.admin()),
            clock: Clock::start(),
            rows,
            figures: Figures::default(),
            elapsed: Duration::ZERO,
            past: VecDeque::from([(Duration::ZERO, 0)]),
            example: None,
            frames: 0,
        }
    }

    /// Takes one reading. `example` is the latest trace worth looking up.
    pub(super) fn read(&mut self, example: Option<TraceId>) {
        self.elapsed = self.clock.elapsed();
        self.figures = Figures::read(&self.admin.scrape(), &self.rows);
        if self.past.len() > RATE_FRAMES {
            self.past.pop_front();
        }
        self.past.push_back((self.elapsed, self.figures.accepted_spans));
        if self.example.is_none() || self.frames.is_multiple_of(EXAMPLE_FRAMES) {
            self.example = example;
        }
        self.frames += 1;
    }

    /// The rate of accepted spans over the last readings.
    pub(super) fn spans_per_second(&self) -> u64 {
        let (Some((since, before)), Some((until, after))) = (self.past.front(), self.past.back())
        else {
            return 0;
        };
        let millis = (*until - *since).as_millis().max(1);
        u64::try_from(u128::from(after - before) * 1000 / millis).unwrap_or(u64::MAX)
    }
}
