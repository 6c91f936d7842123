//! Where a new owner begins to read its partitions: `replay_margin` before what the group has
//! committed, by the times of the records.
//!
//! A partition that ends before its commit was created again, or its brokers have lost records.
//! Offsets then mean other records than before, and only times can tell what is new: it is read
//! and delivered from `replay_margin` before the time of the commit on.

use std::{collections::BTreeMap, time::Duration};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::{KafkaError, KafkaResult},
    message::Message as _,
    types::RDKafkaErrorCode,
};
use tracing::error;

use super::Clients;
use crate::{clock, metrics::Metrics, receiver::kafka::Start};

/// How long the brokers may take to answer one question.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The committed offset of a partition.
struct Committed {
    offset: u64,
    time: Option<u64>,
}

/// A start, and what there is to say about it once all are found.
struct Found {
    start: Start,
    /// The time of the commit.
    time: Option<u64>,
    /// The committed offset, if the partition ends before it.
    is_ahead: Option<u64>,
    /// Records that retention has removed.
    lost: u64,
}

/// Finds the start of each partition, of which it is known whether it holds other records than
/// before.
pub(super) fn find<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &[(i32, bool)],
    clients: &Clients,
    metrics: &Metrics,
) -> KafkaResult<BTreeMap<i32, Start>> {
    let topic = &clients.kafka.topic;
    let mut asked = TopicPartitionList::new();
    for (partition, _) in partitions {
        asked.add_partition(topic, *partition);
    }
    let answered = consumer.committed_offsets(asked, ANSWER_TIMEOUT)?;
    let mut starts = BTreeMap::new();
    // The times from which records are read again.
    let mut times = TopicPartitionList::new();
    for answer in answered.elements() {
        answer.error()?;
        let partition = answer.partition();
        let committed = match answer.offset() {
            Offset::Offset(offset) => Some(Committed {
                offset: offset.try_into().unwrap_or(0),
                time: answer.metadata().parse().ok(),
            }),
            _ => None,
        };
        let (low, high) = ends(consumer, topic, partition)?;
        let is_shortened = partitions.contains(&(partition, true));
        let found = begin(clients, partition, (committed, is_shortened), (low, high))?;
        let margin = clients.kafka.replay_margin.as_millis();
        let from = found.time.map(|it| it.saturating_sub(margin.try_into().unwrap_or(u64::MAX)));
        if let Some(from) = from.and_then(|from| i64::try_from(from).ok()) {
            times.add_partition_offset(topic, partition, Offset::Offset(from))?;
        }
        starts.insert(partition, found);
    }
    if times.count() > 0 {
        for answer in consumer.offsets_for_times(times, ANSWER_TIMEOUT)?.elements() {
            answer.error()?;
            let found = starts.get_mut(&answer.partition());
            // At the end, there is no record as late as the margin.
            if let (Some(Found { start, is_ahead, .. }), Offset::Offset(offset)) =
                (found, answer.offset())
            {
                start.first = start.first.min(number(offset));
                if is_ahead.is_some() {
                    start.commit = start.first;
                }
            }
        }
    }
    Ok(starts
        .into_iter()
        .map(|(partition, it)| (partition, told(partition, &it, metrics)))
        .collect())
}

/// Where a partition begins and ends.
pub(super) fn ends<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
) -> KafkaResult<(u64, u64)> {
    let (low, high) = consumer.fetch_watermarks(topic, partition, ANSWER_TIMEOUT)?;
    Ok((number(low), number(high)))
}

/// Counts and logs what is wrong with a partition.
fn told(partition: i32, found: &Found, metrics: &Metrics) -> Start {
    if found.lost > 0 {
        super::note_lost(metrics, partition, found.lost);
    }
    if let Some(committed) = found.is_ahead {
        let from = found.start.first;
        metrics.kafka().failed();
        error!(
            partition,
            committed,
            from,
            "Kafka: the partition does not hold any more what was committed: its brokers have lost \
             records, or the topic was created again. Records from replay_margin before the commit \
             on are delivered, some of them again"
        );
    }
    found.start
}

/// Where to begin by the commit and by what the partition still holds.
fn begin(
    clients: &Clients,
    partition: i32,
    (committed, is_shortened): (Option<Committed>, bool),
    (low, high): (u64, u64),
) -> KafkaResult<Found> {
    let at = |offset| Found {
        start: Start { first: offset, commit: offset, to_commit: None },
        time: None,
        is_ahead: None,
        lost: 0,
    };
    let Some(Committed { offset, time }) = committed else {
        let is_late = clients.kafka.starts_at_end;
        let mut found = at(if is_late { high } else { low });
        // Otherwise the end would be another one for the next owner.
        let wall = clock::unix_millis();
        found.start.to_commit = is_late.then_some(wall);
        return Ok(found);
    };
    if is_shortened || offset > high {
        let mut found = at(if time.is_some() { high } else { low });
        // Until it goes back, the commit may hide records that take the offsets of lost ones.
        found.start.to_commit = Some(time.unwrap_or(0));
        return Ok(Found { time, is_ahead: Some(offset), ..found });
    }
    if offset < low {
        return Ok(Found { lost: low - offset, ..at(low) });
    }
    let time = match time {
        Some(time) => Some(time),
        None if low == high => None,
        None => record_at(clients, partition, offset.min(high - 1))?.1,
    };
    Ok(Found { time, ..at(offset) })
}

/// The offset and the time of the first record from an offset on.
pub(super) fn record_at(
    clients: &Clients,
    partition: i32,
    offset: u64,
) -> KafkaResult<(u64, Option<u64>)> {
    let reader: BaseConsumer = clients.connection().set("group.id", "unused").create()?;
    let mut from = TopicPartitionList::new();
    let offset = Offset::Offset(i64::try_from(offset).unwrap_or(i64::MAX));
    from.add_partition_offset(&clients.kafka.topic, partition, offset)?;
    reader.assign(&from)?;
    match reader.poll(ANSWER_TIMEOUT) {
        Some(record) => {
            let record = record?;
            let time = record.timestamp().to_millis().and_then(|time| time.try_into().ok());
            Ok((number(record.offset()), time))
        }
        None => Err(KafkaError::OffsetFetch(RDKafkaErrorCode::OperationTimedOut)),
    }
}

fn number(offset: i64) -> u64 {
    offset.try_into().unwrap_or(0)
}
