//! Takes a decompressed message in: converts it to protobuf, walks it, writes it to the log of
//! `[durability]`, adds its spans to the window, and passes on the decisions that this caused.
//!
//! Called on the connection's task, or on the thread of a large request. Without durability, and
//! with `mode = "process"`, there is no await from here to the acknowledgement: a write to the log
//! goes to the page cache, which takes microseconds (`durability/log.rs`). With `mode = "power"`,
//! the request is walked and written, waits for the next sync, and only then enters the window. A
//! request that could not be synced is refused as a whole.

use std::{cell::RefCell, sync::Arc};

use bytes::Bytes;

use super::{
    Intake, Refusal,
    admission::Charge,
    compression::{Encoding, Message, attempt},
    empty::Sent,
    turns::work,
};
use crate::{
    clock::{self, Millis},
    durability::{Durability, Keeper, Received, Record, Ticket},
    metrics::{FailedBecause, Transport},
    otlp::json,
    sampler::{Decided, Ingested, Origin, Passed, Prepared, Scratch, Underway},
    supervise::Task,
};

/// The memory that converting JSON to protobuf takes, in multiples of the JSON's length.
pub(super) const JSON_NEEDS: usize = 2;
/// The longest message that a replay inflates: the longest that can be configured. The request was
/// accepted once, so the current limit does not apply.
const REPLAYED_BYTES_MAX: usize = 1 << 30;

/// How a message is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Protobuf = 0,
    Json = 1,
}

impl Form {
    fn sent(self, body: &[u8]) -> Sent<'_> {
        match self {
            Form::Protobuf => Sent::Protobuf(body),
            Form::Json => Sent::Json(body),
        }
    }
}

/// A request that has been walked, and written to the log if there is one.
struct Taking {
    prepared: Prepared,
    /// Present if the request is in a log.
    underway: Option<Underway>,
    time: u64,
}

/// A request that waits for a sync, with buffers of its own.
struct Staged {
    scratch: Box<Scratch>,
    taking: Taking,
    protobuf: Bytes,
    message: Message,
}

/// The spans of a replayed request, or of several.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Replayed {
    /// Spans that are in the window again, or followed the decision of their trace.
    pub spans: u64,
    /// Spans that were skipped, because an earlier process had dealt with them.
    pub passed_over: u64,
}

/// Buffers for the replay of requests, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Replayer {
    scratch: Scratch,
    decided: Decided,
}

impl Intake {
    /// Takes a message in.
    ///
    /// # Errors
    /// Why it is refused; nothing of it was taken then.
    pub(super) async fn take_message(
        self: &Arc<Self>,
        transport: Transport,
        form: Form,
        message: Message,
    ) -> Result<Ingested, Refusal> {
        let intake = Arc::clone(self);
        let is_large = message.is_large();
        match (&self.durability, &self.keeper) {
            (Some(durability), Some(keeper)) => {
                let (durability, keeper) = (Arc::clone(durability), Arc::clone(keeper));
                let stage = move || intake.stage(transport, form, message, (&durability, &keeper));
                let (staged, ticket) = work(is_large, stage).await?;
                self.take_synced(transport, form, staged, ticket).await
            }
            _ => work(is_large, move || intake.take_now(transport, form, message)).await,
        }
    }

    fn take_now(
        &self,
        transport: Transport,
        form: Form,
        mut message: Message,
    ) -> Result<Ingested, Refusal> {
        let protobuf = self.to_protobuf(form, &mut message)?;
        let (encoding, body) = message.as_received();
        let flags = [transport as u8, Encoding::number(encoding), form as u8];
        let ingested = self.take(transport, &protobuf, Received { flags, body })?;
        self.empty.notice(&self.metrics, transport, form.sent(&message.bytes), &ingested);
        Ok(ingested)
    }

    fn to_protobuf(&self, form: Form, message: &mut Message) -> Result<Bytes, Refusal> {
        match form {
            Form::Protobuf => Ok(message.bytes.clone()),
            Form::Json => {
                message.grow(JSON_NEEDS * message.bytes.len())?;
                let turn_into = || json::to_protobuf(&message.bytes);
                Ok(self.supervisor.contained_now(Task::Receiver, turn_into)??.into())
            }
        }
    }

    /// Adds the spans of one decoded request to the window. The caller has charged its bytes to the
    /// budget.
    fn take(
        &self,
        transport: Transport,
        request: &[u8],
        received: Received<'_>,
    ) -> Result<Ingested, Refusal> {
        thread_local! {
            // One of each per worker thread is enough: there is no await between here and the
            // acknowledgement.
            static BUFFERS: RefCell<(Scratch, Decided)> = RefCell::default();
        }
        let ingest = || {
            BUFFERS.with_borrow_mut(|(scratch, decided)| {
                let taking = self.begin(request, received, scratch)?;
                Ok::<_, Refusal>(self.enter(request, taking, None, (scratch, decided)).0)
            })
        };
        let ingested = self.supervisor.contained_now(Task::Receiver, ingest);
        let ingested = ingested.map_err(|panicked| {
            BUFFERS.with_borrow_mut(|(scratch, decided)| {
                self.give_up(transport, scratch, decided);
            });
            Refusal::from(panicked)
        })??;
        self.count(transport, &ingested);
        Ok(ingested)
    }

    /// Walks a request, and writes it to the log if there is one and the request has a span.
    fn begin(
        &self,
        request: &[u8],
        received: Received<'_>,
        scratch: &mut Scratch,
    ) -> Result<Taking, Refusal> {
        let time = self.clock.millis();
        let prepared = self.sampler.prepare(request, scratch);
        let prepared = prepared.map_err(|unwalked| self.refusal_of(unwalked, request.len()))?;
        let durability = self.durability.as_ref().filter(|_| scratch.has_spans());
        let underway = durability.map(|durability| durability.receive(received, time)).transpose();
        // An idle connection must not keep the contexts of a refused request alive.
        let underway = underway.inspect_err(|_| scratch.clear())?;
        Ok(Taking { prepared, underway, time })
    }

    /// Adds the spans of a request to the window, and passes on the decisions.
    fn enter(
        &self,
        request: &[u8],
        taking: Taking,
        passed: Option<&Passed>,
        (scratch, decided): (&mut Scratch, &mut Decided),
    ) -> (Ingested, Replayed) {
        let Taking { prepared, underway, time } = taking;
        let position = underway.as_ref().map(Underway::position);
        let now = Millis(time as u32);
        let with = (prepared, Origin { position, passed, partition: None });
        let ingested = self.sampler.take_in(now, request, with, scratch, decided);
        let replayed = Replayed { spans: ingested.accepted, passed_over: decided.passed_over };
        self.pass_on(decided);
        // Dropped only now: a watermark must not pass the request before its decisions are passed
        // on.
        drop(underway);
        (ingested, replayed)
    }

    fn count(&self, transport: Transport, ingested: &Ingested) {
        self.metrics.accepted(transport, ingested);
        if let Some(outsized) = &ingested.outsized {
            self.log_outsized(outsized);
        }
    }

    /// After a panic: counts the spans that were taken in, and the spans that are lost.
    fn give_up(&self, transport: Transport, scratch: &mut Scratch, decided: &mut Decided) {
        let taken = Ingested { accepted: scratch.taken(), ..Ingested::default() };
        self.metrics.accepted(transport, &taken);
        self.metrics.failed(FailedBecause::Malformed, decided.give_up());
        self.pass_on(decided);
        (*scratch, *decided) = Default::default();
    }

    /// Passes on the traces that a request has caused to be decided.
    pub(super) fn pass_on(&self, decided: &mut Decided) {
        self.sampler.publish(decided, clock::unix_millis());
        // The outbox comes first, so that kept spans count as queued before they count as kept.
        self.outbox.put(decided);
        self.metrics.decided(decided);
        for _ in 0..decided.panics {
            self.supervisor.panicked(Task::Decider);
        }
        decided.clear();
    }

    /// Walks and writes a request that is taken in after the next sync.
    fn stage(
        &self,
        transport: Transport,
        form: Form,
        mut message: Message,
        (durability, keeper): (&Durability, &Keeper),
    ) -> Result<(Staged, Ticket), Refusal> {
        durability.admits()?;
        let protobuf = self.to_protobuf(form, &mut message)?;
        let (encoding, body) = message.as_received();
        let flags = [transport as u8, Encoding::number(encoding), form as u8];
        let received = Received { flags, body };
        let mut scratch = Box::<Scratch>::default();
        let since = keeper.since();
        let begin = || self.begin(&protobuf, received, &mut scratch);
        let taking = self.supervisor.contained_now(Task::Receiver, begin)??;
        // Taken after the request was written.
        let ticket = keeper.ticket(since);
        Ok((Staged { scratch, taking, protobuf, message }, ticket))
    }

    async fn take_synced(
        self: &Arc<Self>,
        transport: Transport,
        form: Form,
        staged: Staged,
        ticket: Ticket,
    ) -> Result<Ingested, Refusal> {
        if let (Some(keeper), true) = (&self.keeper, staged.taking.underway.is_some())
            && !keeper.synced(ticket).await
        {
            return Err(Refusal::Disk);
        }
        let intake = Arc::clone(self);
        work(staged.message.is_large(), move || {
            let Staged { mut scratch, taking, protobuf, message } = staged;
            let mut decided = Decided::default();
            let enter = || intake.enter(&protobuf, taking, None, (&mut scratch, &mut decided));
            let ingested = intake.supervisor.contained_now(Task::Receiver, enter);
            let (ingested, _) = ingested.inspect_err(|_| {
                intake.give_up(transport, &mut scratch, &mut decided);
            })?;
            intake.count(transport, &ingested);
            intake.empty.notice(&intake.metrics, transport, form.sent(&message.bytes), &ingested);
            Ok(ingested)
        })
        .await
    }

    /// Takes in a request of an earlier process again, at its old position, and skips the spans
    /// that the earlier process has dealt with.
    ///
    /// # Errors
    /// [`Refusal::Memory`] if there is not enough memory now; any other error is final.
    pub(crate) async fn replay(
        &self,
        record: Record<'_>,
        durability: &Durability,
        passed: &Passed,
        replayer: &mut Replayer,
    ) -> Result<Replayed, Refusal> {
        let [_, encoding, form] = record.header.flags;
        let mut charge = Charge::new(&self.budget, REPLAYED_BYTES_MAX);
        charge.grow(record.body.len())?;
        let body = Bytes::copy_from_slice(record.body);
        let bytes = match Encoding::of_number(encoding) {
            None => body,
            Some(encoding) => attempt(encoding, &body, REPLAYED_BYTES_MAX, &mut charge)
                .await?
                .ok_or(Refusal::TooLarge { limit_bytes: REPLAYED_BYTES_MAX })?,
        };
        let protobuf = if form == Form::Json as u8 {
            charge.grow(JSON_NEEDS * bytes.len())?;
            json::to_protobuf(&bytes)?.into()
        } else {
            bytes
        };
        let Replayer { scratch, decided } = replayer;
        let prepared = self.sampler.prepare(&protobuf, scratch);
        let prepared = prepared.map_err(|unwalked| self.refusal_of(unwalked, protobuf.len()))?;
        let underway = durability.begin_again(&record.header);
        let taking = Taking { prepared, underway: Some(underway), time: record.header.time };
        let enter = || self.enter(&protobuf, taking, Some(passed), (scratch, decided));
        let replayed = self.supervisor.contained_now(Task::Durability, enter);
        let replayed = replayed.inspect_err(|_| {
            self.metrics.replayed(scratch.taken());
            self.metrics.failed(FailedBecause::Malformed, decided.give_up());
            self.pass_on(decided);
            (*scratch, *decided) = Default::default();
        });
        let (_, replayed) = replayed?;
        self.metrics.replayed(replayed.spans);
        Ok(replayed)
    }
}
