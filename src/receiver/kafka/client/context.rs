//! The callbacks of librdkafka: changes of the partitions, commits, errors and its own log lines.
//!
//! Callbacks about partitions and commits run inside `poll`, on the thread of the receiver.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rdkafka::{
    ClientContext, Offset, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext},
    error::{KafkaError, KafkaResult},
    types::{RDKafkaErrorCode, RDKafkaRespErr},
};
use tracing::{debug, info, warn};

use super::{Clients, starts};
use crate::{
    clock,
    metrics::Metrics,
    receiver::kafka::{Commit, Member},
    throttle::Throttle,
};

/// The context of the client that only asks for ends.
pub(super) struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, _: &str, message: &str) {
        debug!("Kafka client: {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!("Kafka client: {error}: {reason}");
    }
}

impl ConsumerContext for Quiet {}

/// The context of the member of the group.
pub(super) struct Context {
    pub(super) member: Arc<Mutex<Member>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clients: Arc<Clients>,
    /// Assigned partitions whose start is not known yet, and whether they hold other records than
    /// before.
    unstarted: Mutex<BTreeMap<i32, bool>>,
    errors: Throttle,
    commits: Throttle,
    starts: Throttle,
}

impl Context {
    pub(super) fn new(
        member: &Arc<Mutex<Member>>,
        metrics: &Arc<Metrics>,
        clients: &Arc<Clients>,
    ) -> Self {
        Context {
            member: Arc::clone(member),
            metrics: Arc::clone(metrics),
            clients: Arc::clone(clients),
            unstarted: Mutex::default(),
            errors: Throttle::default(),
            commits: Throttle::default(),
            starts: Throttle::default(),
        }
    }

    pub(super) fn member(&self) -> MutexGuard<'_, Member> {
        // A panic costs one record at most, and the windows are usable after it.
        self.member.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unstarted(&self) -> MutexGuard<'_, BTreeMap<i32, bool>> {
        self.unstarted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn topic(&self) -> &str {
        &self.clients.kafka.topic
    }

    /// The partitions of a list that belong to the topic.
    fn partitions(&self, list: &TopicPartitionList) -> Vec<i32> {
        list.elements_for_topic(self.topic()).iter().map(|it| it.partition()).collect()
    }

    /// Tries again to start partitions whose start could not be found.
    pub(super) fn start_others(&self, consumer: &BaseConsumer<Self>) {
        let unstarted: Vec<_> = self.unstarted().keys().copied().collect();
        if !unstarted.is_empty() {
            let started = self.start(consumer, &unstarted);
            if started.count() > 0
                && let Err(error) = consumer.incremental_assign(&started)
            {
                warn!(%error, "Kafka: partitions cannot be read");
            }
        }
    }

    /// Begins partitions anew that hold other records than before. Their windows are given up.
    pub(super) fn start_anew(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &[i32],
    ) -> KafkaResult<()> {
        let mut list = TopicPartitionList::new();
        {
            let (mut member, mut unstarted) = (self.member(), self.unstarted());
            for &partition in partitions {
                // What could still be committed are offsets of records that are gone.
                let _ = member.revoke(partition);
                unstarted.insert(partition, true);
                list.add_partition(self.topic(), partition);
            }
        }
        consumer.incremental_unassign(&list)
    }

    /// Opens windows for partitions, and returns the list of those that are to be read, with the
    /// offsets where they begin. The others are tried again.
    fn start(&self, consumer: &BaseConsumer<Self>, partitions: &[i32]) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        let is_shortened = |id| self.unstarted().get(&id).copied().unwrap_or(false);
        let partitions: Vec<_> = partitions.iter().map(|&id| (id, is_shortened(id))).collect();
        let found = starts::find(consumer, &partitions, &self.clients, &self.metrics);
        let found = found.unwrap_or_else(|error| {
            self.metrics.kafka().failed();
            if let Some(suppressed) = self.starts.ask() {
                warn!(
                    %error,
                    suppressed,
                    "Kafka: cannot find out where to begin in {} partitions; trying again",
                    partitions.len()
                );
            }
            Default::default()
        });
        let (mut member, mut unstarted) = (self.member(), self.unstarted());
        for (partition, is_shortened) in partitions {
            let begun = found.get(&partition).filter(|start| member.assign(partition, **start));
            let offset = begun.and_then(|start| i64::try_from(start.first).ok());
            match (begun, offset) {
                (Some(start), Some(offset)) => {
                    unstarted.remove(&partition);
                    let offset = Offset::Offset(offset);
                    let _ = list.add_partition_offset(self.topic(), partition, offset);
                    let (from, commit) = (start.first, start.commit);
                    info!(partition, from, commit, "Kafka: reading a partition");
                }
                _ => {
                    unstarted.insert(partition, is_shortened);
                }
            }
        }
        drop((member, unstarted));
        // A pause outlives the assignment in which it was made.
        if list.count() > 0
            && let Err(error) = consumer.resume(&list)
        {
            warn!(%error, "Kafka: partitions cannot be resumed");
        }
        list
    }

    fn give_up(&self, consumer: &BaseConsumer<Self>, partitions: &[i32]) -> KafkaResult<()> {
        let is_lost = consumer.assignment_lost();
        let (mut list, mut commits) = (TopicPartitionList::new(), Vec::new());
        {
            let (mut member, mut unstarted) = (self.member(), self.unstarted());
            for &partition in partitions {
                if unstarted.remove(&partition).is_none() {
                    list.add_partition(self.topic(), partition);
                }
                commits.extend(member.revoke(partition).map(|commit| (partition, commit)));
            }
        }
        info!(
            ?partitions,
            is_lost, "Kafka: partitions move to other members; their undecided traces go with them"
        );
        if !is_lost && !commits.is_empty() {
            // Waits for the answer: afterwards, the next owner asks for it.
            let committed = consumer.commit(&self.commit_list(&commits), CommitMode::Sync);
            if let Err(error) = committed {
                self.note_commit_failed(&error);
            }
        }
        // Also without any: librdkafka waits for this call before it joins the group again.
        consumer.incremental_unassign(&list)
    }

    /// Commits offsets, with the times of their records.
    pub(super) fn commit(&self, consumer: &BaseConsumer<Self>, commits: &[(i32, Commit)]) {
        if commits.is_empty() {
            return;
        }
        if let Err(error) = consumer.commit(&self.commit_list(commits), CommitMode::Async) {
            self.note_commit_failed(&error);
        }
    }

    pub(super) fn commit_list(&self, commits: &[(i32, Commit)]) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for (partition, commit) in commits {
            let mut element = list.add_partition(self.topic(), *partition);
            let offset = Offset::Offset(i64::try_from(commit.offset).unwrap_or(i64::MAX));
            if element.set_offset(offset).is_ok() {
                element.set_metadata(commit.time.to_string());
            }
        }
        list
    }

    pub(super) fn note_commit_failed(&self, error: &KafkaError) {
        self.metrics.kafka().failed();
        if let Some(suppressed) = self.commits.ask() {
            warn!(
                %error,
                suppressed,
                "Kafka: offsets cannot be committed; they are committed again in a second"
            );
        }
    }
}

impl ClientContext for Context {
    fn log(&self, _: RDKafkaLogLevel, _: &str, message: &str) {
        debug!("Kafka client: {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        // Removed offsets are handled where records are read, and an end is not an error.
        if [RDKafkaErrorCode::AutoOffsetReset, RDKafkaErrorCode::PartitionEOF].contains(&code) {
            return;
        }
        self.metrics.kafka().failed();
        let Some(suppressed) = self.errors.ask() else { return };
        let topic = self.topic();
        let remedy = match code {
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {
                "the topic does not exist, or this user may not see it. Create it, or correct \
                 `topic` in [receiver.kafka]"
            }
            RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed => {
                "the brokers do not accept the credentials. Check [receiver.kafka.sasl]"
            }
            RDKafkaErrorCode::SSL => {
                "the TLS connection fails. Check [receiver.kafka.tls] and the certificates"
            }
            RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed => {
                "this user may not read the topic, or not with this group. Check the ACLs"
            }
            RDKafkaErrorCode::FencedInstanceId => {
                "another instance has the same `group_instance_id`. Give each its own"
            }
            _ => "trying again. If this lasts, check `brokers` in [receiver.kafka]",
        };
        warn!(topic, suppressed, "Kafka: {error} ({reason}): {remedy}");
    }
}

impl ConsumerContext for Context {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        event: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let partitions = self.partitions(list);
        if !partitions.is_empty() {
            self.metrics.kafka().rebalanced();
        }
        let outcome = match event {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                let started = self.start(consumer, &partitions);
                consumer.incremental_assign(&started)
            }
            _ => self.give_up(consumer, &partitions),
        };
        if let Err(error) = outcome {
            warn!(%error, "Kafka: a change of partitions has failed");
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        match result {
            // Nothing to commit.
            Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => {}
            Err(error) => self.note_commit_failed(&error),
            Ok(()) => {
                let wall = clock::unix_millis();
                let mut member = self.member();
                for element in offsets.elements_for_topic(self.topic()) {
                    if let (Ok(()), Offset::Offset(offset)) = (element.error(), element.offset()) {
                        let offset = offset.try_into().unwrap_or(0);
                        member.note_committed(element.partition(), offset, wall);
                    }
                }
            }
        }
    }
}
