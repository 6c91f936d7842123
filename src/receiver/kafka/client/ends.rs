//! Asks where the partitions end, on a connection and a thread of its own, so that neither fetches
//! nor records wait for each other. The answers confirm up to when the wall clock counts.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use tracing::warn;

use super::{Clients, RESTART_PAUSE, Stop, context::Quiet};
use crate::{clock, supervise::Vital};

/// The time between two rounds of questions.
const PAUSE: Duration = Duration::from_millis(500);
/// One leader that is gone must not hold up the questions about other partitions for long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The end of a partition at a moment of the wall clock, in Unix milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) offset: u64,
    pub(super) asked_at: u64,
}

/// Questions and answers.
#[derive(Debug, Default)]
pub(super) struct Ends {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    wanted: Vec<i32>,
    answers: BTreeMap<i32, End>,
}

impl Ends {
    /// Asks for these partitions from now on.
    pub(super) fn want(&self, partitions: impl Iterator<Item = i32>) {
        let mut state = self.lock();
        state.wanted.clear();
        state.wanted.extend(partitions);
    }

    /// The answers since the last call.
    pub(super) fn take(&self) -> BTreeMap<i32, End> {
        std::mem::take(&mut self.lock().answers)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks on a thread of its own until it is told to stop.
    pub(super) fn spawn(
        self: &Arc<Self>,
        clients: &Arc<Clients>,
        stop: Arc<Stop>,
        vital: Vital,
    ) -> std::io::Result<thread::JoinHandle<()>> {
        let (ends, clients) = (Arc::clone(self), Arc::clone(clients));
        let run = move || {
            // Without confirmations nothing would be decided where no record follows.
            let _vital = vital;
            while !stop.is_set() {
                ends.ask_with_one_client(&clients, &stop);
            }
        };
        thread::Builder::new().name("kafka-ends".into()).spawn(run)
    }

    /// Asks until the credentials change, or it is told to stop.
    fn ask_with_one_client(&self, clients: &Clients, stop: &Stop) {
        let generation = clients.generation();
        let reader: BaseConsumer<Quiet> = match clients.connection().create_with_context(Quiet) {
            Ok(reader) => reader,
            Err(error) => {
                warn!(%error, "Kafka: no client to ask where partitions end; trying again");
                stop.wait(RESTART_PAUSE);
                return;
            }
        };
        while generation == clients.generation() {
            self.ask(&reader, &clients.kafka.topic, stop);
            if stop.wait(PAUSE) {
                return;
            }
        }
    }

    fn ask(&self, reader: &BaseConsumer<Quiet>, topic: &str, stop: &Stop) {
        // Serves its callbacks.
        let _ = reader.poll(Duration::ZERO);
        let wanted = self.lock().wanted.clone();
        for partition in wanted {
            if stop.is_set() {
                return;
            }
            let asked_at = clock::unix_millis();
            let Ok((_, end)) = reader.fetch_watermarks(topic, partition, ANSWER_TIMEOUT) else {
                // The member of the group meets the same errors and reports them. It may know added
                // partitions that this client does not know yet.
                let _ = reader.fetch_metadata(Some(topic), ANSWER_TIMEOUT);
                continue;
            };
            if let Ok(offset) = end.try_into() {
                self.lock().answers.insert(partition, End { offset, asked_at });
            }
        }
    }
}
