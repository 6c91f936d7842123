//! Reading on after the brokers have refused an offset: retention has removed its record before it
//! was read, or brokers have lost records.
//!
//! librdkafka reports the error without its partition, stops to fetch this partition, and refuses
//! to seek in it. So all partitions are examined, and each of them begins anew: where it was, where
//! its records begin now, or, if it has lost records, where `starts.rs` says.
//!
//! A partition has lost records if it ends before the next record, or if its last record has
//! another time than it had: then new records have taken the offsets of lost ones.

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaResult,
};

use super::{Clients, context::Context, starts};

/// What has become of the records of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// The next record is there, or still to come.
    Whole,
    /// Records begin only at this offset.
    Removed { low: u64 },
    /// Records that were read are not there any more.
    Shortened,
}

/// Examines all partitions, and begins to read them anew.
pub(super) fn mend(consumer: &BaseConsumer<Context>) -> KafkaResult<()> {
    let context = consumer.context();
    let held: Vec<_> = {
        let member = context.member();
        member.partitions().map(|(id, it)| (id, (it.next(), it.last()))).collect()
    };
    let (mut again, mut shortened) = (Vec::new(), Vec::new());
    for (partition, read) in held {
        match examine(consumer, &context.clients, partition, read)? {
            Found::Whole => again.push((partition, read.0)),
            Found::Removed { low } => {
                super::note_lost(&context.metrics, partition, low - read.0);
                context.member().skip_to(partition, low);
                again.push((partition, low));
            }
            Found::Shortened => shortened.push(partition),
        }
    }
    let mut list = TopicPartitionList::new();
    for (partition, offset) in again {
        let offset = Offset::Offset(i64::try_from(offset).unwrap_or(i64::MAX));
        list.add_partition_offset(&context.clients.kafka.topic, partition, offset)?;
    }
    if list.count() > 0 {
        consumer.incremental_unassign(&list)?;
        consumer.incremental_assign(&list)?;
    }
    if shortened.is_empty() { Ok(()) } else { context.start_anew(consumer, &shortened) }
}

fn examine(
    consumer: &BaseConsumer<Context>,
    clients: &Clients,
    partition: i32,
    (next, last): (u64, Option<(u64, Option<u64>)>),
) -> KafkaResult<Found> {
    let (low, high) = starts::ends(consumer, &clients.kafka.topic, partition)?;
    if next > high {
        return Ok(Found::Shortened);
    }
    if next < low {
        return Ok(Found::Removed { low });
    }
    let has_changed = match last.filter(|&(offset, _)| offset >= low) {
        Some(last) => starts::record_at(clients, partition, last.0)? != last,
        None => false,
    };
    Ok(if has_changed { Found::Shortened } else { Found::Whole })
}
