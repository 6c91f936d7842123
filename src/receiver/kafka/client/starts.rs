//! Finds where a new owner begins to read its partitions: `replay_margin` before the offset that
//! the group has committed, by the times of the records.

use std::{collections::BTreeMap, time::Duration};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::{KafkaError, KafkaResult},
    message::Message as _,
    types::RDKafkaErrorCode,
};
use tracing::warn;

use super::Clients;
use crate::{metrics::Metrics, receiver::kafka::Start};

/// How long the brokers may take to answer one question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The committed offset of a partition.
struct Committed {
    offset: u64,
    time: Option<u64>,
}

/// Finds the start of each partition; of those that are left out, it could not be found.
pub(super) fn find<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &[i32],
    clients: &Clients,
    metrics: &Metrics,
) -> KafkaResult<BTreeMap<i32, Start>> {
    let topic = &clients.kafka.topic;
    let mut asked = TopicPartitionList::new();
    for partition in partitions {
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
        let ends = consumer.fetch_watermarks(topic, partition, ANSWER_TIMEOUT)?;
        let ends = (number(ends.0), number(ends.1));
        let (start, time) = begin(clients, partition, (committed, ends), metrics)?;
        starts.insert(partition, start);
        let margin = clients.kafka.replay_margin.as_millis();
        let from = time.map(|time| time.saturating_sub(margin.try_into().unwrap_or(u64::MAX)));
        if let Some(from) = from.and_then(|from| i64::try_from(from).ok()) {
            times.add_partition_offset(topic, partition, Offset::Offset(from))?;
        }
    }
    if times.count() > 0 {
        for answer in consumer.offsets_for_times(times, ANSWER_TIMEOUT)?.elements() {
            answer.error()?;
            let start = starts.get_mut(&answer.partition());
            // At the end, there is no record as late as the margin.
            if let (Some(start), Offset::Offset(offset)) = (start, answer.offset()) {
                start.first = start.first.min(number(offset));
            }
        }
    }
    Ok(starts)
}

/// The offset to begin at, from the commit and the records that the partition still holds, and the
/// time of the commit.
fn begin(
    clients: &Clients,
    partition: i32,
    (committed, (low, high)): (Option<Committed>, (u64, u64)),
    metrics: &Metrics,
) -> KafkaResult<(Start, Option<u64>)> {
    let at = |offset| Start { first: offset, commit: offset };
    let kafka = &clients.kafka;
    let Some(Committed { offset, time }) = committed else {
        return Ok((at(if kafka.starts_at_end { high } else { low }), None));
    };
    if offset < low {
        super::note_lost(metrics, partition, low - offset);
        return Ok((at(low), None));
    }
    if offset > high {
        warn!(
            partition,
            committed = offset,
            end = high,
            "the partition ends before the committed offset: the topic was created again, or its \
             brokers have lost records. Reading it from the oldest record"
        );
        return Ok((at(low), None));
    }
    let time = match time {
        Some(time) => Some(time),
        None if low == high => None,
        None => time_of(clients, partition, offset.min(high - 1))?,
    };
    Ok((at(offset), time))
}

/// The time of a record, where a commit does not say it.
fn time_of(clients: &Clients, partition: i32, offset: u64) -> KafkaResult<Option<u64>> {
    let reader: BaseConsumer = clients.connection().set("group.id", "unused").create()?;
    let mut from = TopicPartitionList::new();
    let offset = Offset::Offset(i64::try_from(offset).unwrap_or(i64::MAX));
    from.add_partition_offset(&clients.kafka.topic, partition, offset)?;
    reader.assign(&from)?;
    match reader.poll(ANSWER_TIMEOUT) {
        Some(record) => Ok(record?.timestamp().to_millis().and_then(|time| time.try_into().ok())),
        None => Err(KafkaError::OffsetFetch(RDKafkaErrorCode::OperationTimedOut)),
    }
}

fn number(offset: i64) -> u64 {
    offset.try_into().unwrap_or(0)
}
