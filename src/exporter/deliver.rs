//! Delivers one request to the backend, whole or in parts, until each span is sent or given up.
//!
//! A part is cut in two by its spans, and the halves take its place, when
//!
//! - it is larger than the known limit of the backend, before it is sent;
//! - the backend says that it is too large, down to 16 KiB; smaller parts are cut like those that
//!   are refused as invalid, so that a span that is too large fails alone;
//! - the backend refuses it as invalid, which may be about one of its spans: at most [`CUTS_MAX`]
//!   times a request, and not while the backend refuses everything ([`Peer::takes_some`]);
//! - the backend says [`EXHAUSTED_MAX`] times in a row that it is exhausted: if a rate limit has a
//!   burst smaller than the request, waiting alone never helps.
//!
//! If the spans of a resource or scope end up in both halves, it is copied into each. Copies are
//! charged to the memory budget. All copies together are at most as large as the request, or 256
//! KiB if that is more; a part whose cut would exceed this is not cut any more.
//!
//! The consumer that holds the request sends the halves one after the other, in the order of their
//! spans. `max_elapsed_time` counts from the first failure after the last success. The last attempt
//! is made when that time is over, so that an outage of exactly that time loses nothing. Then the
//! exporter gives up the rest of the request. If the backend answers, but is exhausted, the part is
//! still halved; each half and each other part gets one attempt.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tonic::Code;
use tracing::{debug, info, warn};

use super::{
    Cause, Consumer, Outcome, Popped,
    answer::REQUEST_BYTES_MIN,
    peer::{Peer, REFUSALS_MAX, SizeEvidence},
};
use crate::{
    budget::Hold,
    metrics::{ExportCode, FailedBecause},
    otlp::{encode::EncodedRequest, split},
    supervise::Task,
};

/// Factor from one delay to the next.
const BACKOFF_FACTOR: f64 = 1.5;
/// Each delay is shortened by up to this share, so that the clients of one backend spread out, and
/// none waits longer than `max_interval`.
const JITTER: f64 = 0.5;
/// Cuts of one request because of its content: enough to find two bad spans among 16,000, or dozens
/// that are adjacent.
const CUTS_MAX: u32 = REFUSALS_MAX;
/// After this many answers in a row that the backend is exhausted, a part is halved.
const EXHAUSTED_MAX: u32 = 4;
/// The bytes that cutting a small request may copy: contexts of 4 KiB in each of its cuts.
const COPIED_BYTES_MIN: usize = 256 << 10;
/// The most characters of a backend's message that are logged.
const SAID_CHARS_MAX: usize = 300;

pub(super) struct Delivery<'a> {
    consumer: &'a mut Consumer,
    popped: &'a mut Popped,
    /// The parts that are left of the request, the next one last.
    parts: Vec<EncodedRequest>,
    cuts_left: u32,
    /// Bytes of contexts that further cuts may copy, and the charges of the copies so far.
    copies_left: usize,
    copied: Vec<Hold>,
    /// The delay until the next attempt.
    delay: Duration,
    /// The first failure after the last success, by tokio's clock, as the delays are.
    failing_since: Option<Instant>,
    /// Answers in a row that the backend is exhausted.
    exhausted: u32,
    /// The evidence from the parts of this request about the size limit of the backend.
    sizes: SizeEvidence,
    loss: Option<Loss>,
}

/// Lost spans of the request, and the backend's message about the last of them.
struct Loss {
    spans: u64,
    because: FailedBecause,
    code: ExportCode,
    said: String,
}

/// An attempt that must be repeated.
struct Again {
    code: ExportCode,
    after: Option<Duration>,
    cause: Cause,
    said: String,
}

impl<'a> Delivery<'a> {
    pub(super) fn new(consumer: &'a mut Consumer, popped: &'a mut Popped) -> Self {
        let body = std::mem::take(&mut popped.body);
        Delivery {
            copies_left: body.len().max(COPIED_BYTES_MIN),
            copied: Vec::new(),
            parts: vec![EncodedRequest { body, spans: popped.unsettled() }],
            cuts_left: CUTS_MAX,
            delay: consumer.retry.initial_interval,
            failing_since: None,
            exhausted: 0,
            sizes: SizeEvidence::default(),
            loss: None,
            consumer,
            popped,
        }
    }

    /// Delivers everything that can be delivered.
    pub(super) async fn run(mut self) {
        while let Some(part) = self.parts.pop() {
            let limit = self.peer().limit().min(self.sizes.limit());
            if part.spans > 1 && part.body.len() > limit && self.cut(&part) {
                continue;
            }
            self.deliver(part).await;
        }
        self.learn();
        self.log();
    }

    /// Sends a part until it is settled, cut or given up.
    async fn deliver(&mut self, part: EncodedRequest) {
        self.exhausted = 0;
        loop {
            if *self.consumer.give_up.borrow() {
                return self.give_up(FailedBecause::Shutdown, Code::Cancelled.into(), "shutdown");
            }
            let Some(outcome) = self.attempt(part.body.clone()).await else { continue };
            let Some(again) = self.judge(&part, outcome) else { return };
            let Some(wait) = self.wait(again.after) else {
                return self.expire(&part, &again);
            };
            self.consumer.metrics.retried(again.code);
            self.rest(wait).await;
            if self.exhausted >= EXHAUSTED_MAX && self.may_cut(&part) && self.cut(&part) {
                return;
            }
        }
    }

    /// The delay until the next attempt; `None` if there will be none.
    fn wait(&mut self, asked: Option<Duration>) -> Option<Duration> {
        let elapsed = self.failing_since.get_or_insert_with(Instant::now).elapsed();
        let most = self.consumer.retry.max_elapsed_time.unwrap_or(Duration::MAX);
        let left = most.checked_sub(elapsed).filter(|left| !left.is_zero())?;
        let wait = jittered(self.delay).min(left);
        self.delay = self.delay.mul_f64(BACKOFF_FACTOR).min(self.consumer.retry.max_interval);
        // Never sooner than the backend asked for.
        let asked = asked.unwrap_or_default().mul_f64(1.0 + JITTER * fastrand::f64());
        (asked <= left).then_some(wait.max(asked))
    }

    /// Makes one attempt; `None` if there is no time left for it.
    async fn attempt(&mut self, body: Bytes) -> Option<Outcome> {
        let consumer = &mut *self.consumer;
        let started = consumer.clock.elapsed();
        let outcome = tokio::select! {
            // An answer that has arrived counts, even if time runs out at the same moment.
            biased;
            outcome = consumer.client.export(body) => outcome,
            _ = consumer.give_up.wait_for(|&give_up| give_up) => return None,
        };
        consumer.metrics.exported(outcome.code(), consumer.clock.elapsed() - started);
        if let Outcome::Retry { code, message, .. } | Outcome::Refused { code, message, .. } =
            &outcome
        {
            let said = format!("{}: {}", code.as_str(), shortened(message));
            consumer.client.peer.took_nothing(said);
        }
        Some(outcome)
    }

    /// Settles or cuts a part by the outcome of an attempt, unless the attempt must be repeated.
    fn judge(&mut self, part: &EncodedRequest, outcome: Outcome) -> Option<Again> {
        match outcome {
            Outcome::Sent { code, rejected, message } => {
                self.sent(part, rejected.min(part.spans), code, &message);
            }
            Outcome::TooLarge { code, limit, message } => {
                self.too_large(part, code, limit, &message)
            }
            Outcome::Refused { code, is_about_spans: true, message } => {
                self.peer().refused();
                if !self.may_cut(part) || !self.cut(part) {
                    self.fail(FailedBecause::Rejected, part.spans, code, &message);
                }
            }
            Outcome::Refused { code, is_about_spans: false, message } => {
                self.fail(FailedBecause::Rejected, part.spans, code, &message);
            }
            Outcome::Retry { code, after, cause, message } => {
                let is_exhausted = cause == Cause::Exhausted;
                self.exhausted = if is_exhausted { self.exhausted + 1 } else { 0 };
                return Some(self.again(Again { code, after, cause, said: shortened(&message) }));
            }
            Outcome::Panicked => {
                self.consumer.supervisor.panicked(Task::Exporter);
                let said = "the answer made the exporter panic".to_owned();
                let (code, cause) = (Code::Unknown.into(), Cause::Unavailable);
                return Some(self.again(Again { code, after: None, cause, said }));
            }
        }
        None
    }

    fn too_large(
        &mut self,
        part: &EncodedRequest,
        code: ExportCode,
        limit: Option<usize>,
        message: &str,
    ) {
        self.sizes.refused(part.body.len(), limit);
        let may_cut = if part.body.len() > REQUEST_BYTES_MIN {
            part.spans > 1
        } else {
            // Every backend takes a request this small, so the refusal is about a span.
            self.peer().refused();
            self.may_cut(part)
        };
        if !may_cut || !self.cut(part) {
            self.sizes.refused_alone();
            self.fail(FailedBecause::TooLarge, part.spans, code, message);
        }
    }

    fn again(&self, again: Again) -> Again {
        let (code, said) = (again.code.as_str(), &again.said);
        debug!(code, said, "an export attempt failed and will be retried");
        if self.peer().failed(again.cause) {
            let advice = advice_on_outage(again.cause);
            warn!(
                code,
                said,
                "the backend does not accept spans: the exporter queues and retries them. {advice}"
            );
        }
        again
    }

    fn sent(&mut self, part: &EncodedRequest, rejected: u64, code: ExportCode, message: &str) {
        let spans = part.spans;
        self.sizes.taken(part.body.len());
        if let Some(outage) = self.peer().took(part.body.len()) {
            info!(?outage, "the backend accepts spans again");
        }
        if rejected > 0 {
            self.fail(FailedBecause::PartialSuccess, rejected, code, message);
        } else if !message.is_empty() {
            debug!(said = shortened(message), "the backend accepted spans with a warning");
        }
        self.consumer.metrics.sent(spans - rejected);
        self.popped.settle(spans - rejected);
        self.failing_since = None;
        self.delay = self.consumer.retry.initial_interval;
    }

    /// Counts spans of a part as lost, or as rejected by a backend that took the rest.
    fn fail(&mut self, because: FailedBecause, spans: u64, code: ExportCode, said: &str) {
        self.consumer.metrics.failed(because, spans);
        self.popped.settle(spans);
        let spans = spans + self.loss.as_ref().map_or(0, |loss| loss.spans);
        self.loss = Some(Loss { spans, because, code, said: shortened(said) });
    }

    /// Gives up after the time for retries is over.
    fn expire(&mut self, part: &EncodedRequest, again: &Again) {
        let because = FailedBecause::RetryExpired;
        if again.cause != Cause::Exhausted {
            self.give_up(because, again.code, &again.said);
        } else if !self.may_cut(part) || !self.cut(part) {
            self.fail(because, part.spans, again.code, &again.said);
        }
    }

    /// Gives up everything that is left of the request.
    fn give_up(&mut self, because: FailedBecause, code: ExportCode, said: &str) {
        self.parts.clear();
        if because == FailedBecause::Shutdown && self.consumer.leaves {
            return self.popped.leave();
        }
        self.fail(because, self.popped.unsettled(), code, said);
    }

    /// Tells the other consumers which size limit the parts have shown.
    fn learn(&self) {
        let Some(limit) = self.sizes.proven_limit() else { return };
        if let Some(bytes) = self.peer().learn(limit) {
            info!(
                bytes,
                "the backend accepts only smaller requests: the exporter cuts larger ones for ten \
                 minutes. A smaller exporter.otlp.max_request_size_kib avoids the refusals"
            );
        }
    }

    /// Whether a part may be cut for a reason other than its size. Counts the cut.
    fn may_cut(&mut self, part: &EncodedRequest) -> bool {
        let may = part.spans > 1 && self.cuts_left > 0 && self.peer().takes_some();
        self.cuts_left -= u32::from(may);
        may
    }

    /// Replaces a part of several spans with its halves, unless that would copy too much.
    fn cut(&mut self, part: &EncodedRequest) -> bool {
        let halves = split::halves(&part.body).ok().flatten();
        let [first, second] = halves.expect("a request of several spans, encoded by us");
        assert_eq!(first.spans + second.spans, part.spans, "a request has the spans that it says");
        let bytes = first.body.len() + second.body.len();
        let copied = bytes.saturating_sub(part.body.len());
        let Some(copies_left) = self.copies_left.checked_sub(copied) else { return false };
        self.copies_left = copies_left;
        self.copied.push(self.popped.charge(copied));
        self.parts.extend([second, first]);
        true
    }

    async fn rest(&mut self, wait: Duration) {
        tokio::select! {
            // Giving up comes first: a delay may be minutes.
            biased;
            _ = self.consumer.give_up.wait_for(|&give_up| give_up) => {}
            () = tokio::time::sleep(wait) => {}
        }
    }

    /// Logs at most one line a request, and fewer while many fail.
    fn log(&mut self) {
        // The shutdown logs the spans that it has cost.
        let loss = self.loss.take().filter(|loss| loss.because != FailedBecause::Shutdown);
        let spans = self.peer().lost(loss.as_ref().map_or(0, |loss| loss.spans));
        match (spans, loss) {
            (Some(spans), Some(Loss { because, code, said, .. })) => {
                let (code, advice) = (code.as_str(), advice_on_loss(because));
                warn!(spans, code, said, "kept spans were lost: {advice}");
            }
            (Some(spans), None) => {
                warn!(spans, "more kept spans were lost since the last line about lost spans")
            }
            (None, _) => {}
        }
    }

    fn peer(&self) -> &Peer {
        &self.consumer.client.peer
    }
}

/// Advice for the operator while the backend takes nothing.
fn advice_on_outage(cause: Cause) -> &'static str {
    match cause {
        Cause::Unavailable => "Is exporter.otlp.endpoint right, and is the backend up?",
        Cause::Exhausted => "It limits the rate: raise its rate limit, or keep fewer spans",
        Cause::Credentials => {
            "It does not accept the credentials: check exporter.otlp.bearer_token_file and \
             exporter.otlp.headers; a token may have expired, or the tenant may be wrong"
        }
        Cause::NotOtlp => {
            "The endpoint does not seem to be its OTLP receiver: check exporter.otlp.endpoint \
             and exporter.otlp.protocol"
        }
    }
}

/// Why spans were lost.
fn advice_on_loss(because: FailedBecause) -> &'static str {
    match because {
        FailedBecause::RetryExpired => {
            "the backend did not take them within retry_on_failure.max_elapsed_time"
        }
        FailedBecause::TooLarge => {
            "a single span, with its resource and scope, is larger than the backend accepts"
        }
        FailedBecause::PartialSuccess => "the backend took the other spans of their request",
        _ => "the backend refused them, and would refuse them again",
    }
}

fn shortened(said: &str) -> String {
    said.chars().take(SAID_CHARS_MAX).collect()
}

fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(1.0 - JITTER * fastrand::f64())
}
