//! One request on its way to the backend, whole or in parts, until each span is sent or given up.
//!
//! A request is cut in two by its spans, and each half takes its place, when
//!
//! - it is larger than the backend is known to take, before it is sent;
//! - the backend says that it is too large, down to 16 KiB; smaller parts are cut like those that
//!   are refused as invalid, so that a span that is too large fails alone;
//! - the backend refuses it for what may be a span of it, as invalid, at most [`CUTS_MAX`] times a
//!   request and not while the backend refuses everything ([`Peer::takes_some`]);
//! - the backend is exhausted by it [`EXHAUSTED_MAX`] times in a row: with a rate limit whose burst
//!   is smaller than a request, waiting alone never helps.
//!
//! A resource or scope whose spans end up in both halves is copied into each. What is copied is
//! charged to the memory budget, and is at most as much as the request (or 256 KiB where that is
//! more): a part that could only be cut with more copying is not cut any more.
//!
//! Halves are sent one after the other, in the order of their spans, by the one consumer that has
//! the request. `max_elapsed_time` counts from the first failure since something was taken, and
//! the last attempt is made when it is over, so that an outage of just that time loses nothing.
//! Then all that is left of the request is given up. Where the backend is there, but exhausted, it
//! is halved still, each half has one attempt, and so have the other parts.

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

/// Growth of the delay from one attempt to the next.
const BACKOFF_FACTOR: f64 = 1.5;
/// Each delay is shorter by up to this share, so that clients of one backend spread, and none waits
/// for longer than `max_interval`.
const JITTER: f64 = 0.5;
/// Cuts of one request because of what is in it: enough to find two bad spans among 16,000, or
/// dozens that stand together.
const CUTS_MAX: u32 = REFUSALS_MAX;
/// Answers that the backend is exhausted, in a row, after which a part is halved.
const EXHAUSTED_MAX: u32 = 4;
/// What cutting a small request may copy: contexts of 4 KiB in as many cuts as it may have.
const COPIED_BYTES_MIN: usize = 256 << 10;
/// The most of a backend's words that is logged.
const SAID_CHARS_MAX: usize = 300;

/// See the module.
pub(super) struct Delivery<'a> {
    consumer: &'a mut Consumer,
    popped: &'a mut Popped,
    /// What is left of the request, the next part last.
    parts: Vec<EncodedRequest>,
    cuts_left: u32,
    /// Bytes of contexts that further cuts may copy, and what the copies so far are charged.
    copies_left: usize,
    copied: Vec<Hold>,
    /// Until the next attempt.
    delay: Duration,
    /// The first failure since something was taken. By tokio's clock, as the delays are.
    failing_since: Option<Instant>,
    /// Answers that the backend is exhausted, in a row.
    exhausted: u32,
    /// What parts of this request have shown about sizes.
    sizes: SizeEvidence,
    loss: Option<Loss>,
}

/// Spans of the request that are lost, and what was said about the last of them.
struct Loss {
    spans: u64,
    because: FailedBecause,
    code: ExportCode,
    said: String,
}

/// An attempt to be made again.
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

    /// Delivers all that can be delivered.
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

    /// The delay until the next attempt; `None` when there is none.
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

    /// One attempt; `None` when there is no time left for it.
    async fn attempt(&mut self, body: Bytes) -> Option<Outcome> {
        let consumer = &mut *self.consumer;
        let started = consumer.clock.elapsed();
        let outcome = tokio::select! {
            // An answer that is here already counts, even when time has run out in the same moment.
            biased;
            outcome = consumer.client.export(body) => outcome,
            _ = consumer.give_up.wait_for(|&give_up| give_up) => return None,
        };
        consumer.metrics.exported(outcome.code(), consumer.clock.elapsed() - started);
        Some(outcome)
    }

    /// Settles or cuts a part by what an attempt came to, unless the attempt is to be made again.
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
                let said = "an answer made the client panic".to_owned();
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
            // Every backend takes so little: this is about a span.
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
        debug!(code, said, "export will be retried");
        if self.peer().failed(again.cause) {
            let advice = advice_on_outage(again.cause);
            warn!(
                code,
                said, "the backend does not take spans: they are queued and retried. {advice}"
            );
        }
        again
    }

    fn sent(&mut self, part: &EncodedRequest, rejected: u64, code: ExportCode, message: &str) {
        let spans = part.spans;
        self.sizes.taken(part.body.len());
        if let Some(outage) = self.peer().took(part.body.len()) {
            info!(?outage, "the backend takes spans again");
        }
        if rejected > 0 {
            self.fail(FailedBecause::PartialSuccess, rejected, code, message);
        } else if !message.is_empty() {
            debug!(said = shortened(message), "the backend took spans with a warning");
        }
        self.consumer.metrics.sent(spans - rejected);
        self.popped.settle(spans - rejected);
        self.failing_since = None;
        self.delay = self.consumer.retry.initial_interval;
    }

    /// Spans of a part are lost, or rejected by a backend that took the rest.
    fn fail(&mut self, because: FailedBecause, spans: u64, code: ExportCode, said: &str) {
        self.consumer.metrics.failed(because, spans);
        self.popped.settle(spans);
        let spans = spans + self.loss.as_ref().map_or(0, |loss| loss.spans);
        self.loss = Some(Loss { spans, because, code, said: shortened(said) });
    }

    /// The time for retrying is over.
    fn expire(&mut self, part: &EncodedRequest, again: &Again) {
        let because = FailedBecause::RetryExpired;
        if again.cause != Cause::Exhausted {
            self.give_up(because, again.code, &again.said);
        } else if !self.may_cut(part) || !self.cut(part) {
            self.fail(because, part.spans, again.code, &again.said);
        }
    }

    /// Everything that is left of the request is lost.
    fn give_up(&mut self, because: FailedBecause, code: ExportCode, said: &str) {
        self.parts.clear();
        self.fail(because, self.popped.unsettled(), code, said);
    }

    /// Tells the other consumers what the parts have shown about sizes.
    fn learn(&self) {
        let Some(limit) = self.sizes.proven_limit() else { return };
        if let Some(bytes) = self.peer().learn(limit) {
            info!(
                bytes,
                "the backend takes smaller requests: larger ones are cut for ten minutes. A \
                 smaller exporter.otlp.max_request_size_kib saves the attempts"
            );
        }
    }

    /// Whether a part may be cut for a reason other than its size; counts it.
    fn may_cut(&mut self, part: &EncodedRequest) -> bool {
        let may = part.spans > 1 && self.cuts_left > 0 && self.peer().takes_some();
        self.cuts_left -= u32::from(may);
        may
    }

    /// Puts the halves of a part of several spans in its place, unless too much would be copied.
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

    /// One line a request at most, and fewer while many fail.
    fn log(&mut self) {
        // A shutdown says itself how many spans it cost.
        let loss = self.loss.take().filter(|loss| loss.because != FailedBecause::Shutdown);
        let spans = self.peer().lost(loss.as_ref().map_or(0, |loss| loss.spans));
        match (spans, loss) {
            (Some(spans), Some(Loss { because, code, said, .. })) => {
                let (code, advice) = (code.as_str(), advice_on_loss(because));
                warn!(spans, code, said, "kept spans are lost: {advice}");
            }
            (Some(spans), None) => {
                warn!(spans, "kept spans were lost since the last line about it")
            }
            (None, _) => {}
        }
    }

    fn peer(&self) -> &Peer {
        &self.consumer.client.peer
    }
}

/// What an operator should look at while nothing is taken.
fn advice_on_outage(cause: Cause) -> &'static str {
    match cause {
        Cause::Unavailable => "Is exporter.otlp.endpoint right, and is the backend up?",
        Cause::Exhausted => "It limits the rate: raise its limit, or keep fewer spans",
        Cause::Credentials => {
            "It does not accept the credentials: check exporter.otlp.bearer_token_file and \
             exporter.otlp.headers; a token may have expired, or the tenant may be wrong"
        }
        Cause::NotOtlp => {
            "What answers does not seem to be its OTLP receiver: check exporter.otlp.endpoint \
             and exporter.otlp.protocol"
        }
    }
}

/// Why spans were lost.
fn advice_on_loss(because: FailedBecause) -> &'static str {
    match because {
        FailedBecause::RetryExpired => {
            "the backend did not take them for retry_on_failure.max_elapsed_time"
        }
        FailedBecause::TooLarge => {
            "a single one, with its resource and scope, is larger than the backend takes"
        }
        FailedBecause::PartialSuccess => "the backend took the others of their request",
        _ => "the backend refuses them for good",
    }
}

fn shortened(said: &str) -> String {
    said.chars().take(SAID_CHARS_MAX).collect()
}

fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(1.0 - JITTER * fastrand::f64())
}
