//! `[durability]` in the wiring: opens the logs, recovers at the start, and closes the logs at the
//! end.

use std::{collections::HashMap, net::TcpListener, sync::Arc, thread, time::Duration};

use tokio::{
    task::{JoinSet, spawn_blocking},
    time::{sleep, timeout},
};
use tracing::{error, info, warn};

use super::{Shared, StartError, credentials::Credentials};
use crate::{
    admin::Starting,
    budget::Holder,
    config::Config,
    decider::{Decider, JournalParts},
    durability::{
        Durability, Keeper, LogFileInfo, OUTBOX_PART, Queued, ReadError, Record, RecordReader,
        Recovered, Settings, WrittenDecision,
    },
    exporter::Queue,
    metrics::Metrics,
    policy::PolicyId,
    receiver::{
        Intake, Refusal,
        take::{Replayed, Replayer},
    },
    sampler::{Passed, Scratch},
    supervise::{Supervisor, Task},
};

/// After this many replayed requests, memory is checked and late spans are passed on.
const RECORDS_AT_ONCE: usize = 64;
/// After this many restored decisions, the oldest are forgotten if they take too much memory.
const DECISIONS_AT_ONCE: usize = 4_096;
/// A replayed request that finds no memory is retried after this pause, up to [`ROOM_ATTEMPTS`]
/// times once the export queue is empty.
const ROOM_PAUSE: Duration = Duration::from_millis(20);
const ROOM_ATTEMPTS: u32 = 1_500;
/// The time that consumers get at the end, to finish the requests that they have sent.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// The open logs, and the state that an earlier process has left in them.
pub(super) struct Opened {
    pub(super) durability: Arc<Durability>,
    pub(super) recovered: Recovered,
}

impl Opened {
    /// The names of the policies of earlier decisions.
    pub(super) fn policies(&self) -> impl Iterator<Item = &str> {
        self.recovered.policies()
    }
}

/// The logs of a running service.
#[derive(Debug)]
pub(super) struct Durable {
    durability: Arc<Durability>,
    keeper: Option<Arc<Keeper>>,
    thread: Option<thread::JoinHandle<()>>,
    leaves: bool,
}

impl Durable {
    pub(super) fn new(
        config: &Config,
        opened: &Opened,
        metrics: &Arc<Metrics>,
        supervisor: &Arc<Supervisor>,
    ) -> Self {
        let durability = Arc::clone(&opened.durability);
        let interval = durability.settings().sync_interval;
        let keeper = interval.map(|every| Arc::new(Keeper::new(&durability, metrics, every)));
        let thread = keeper.as_ref().and_then(|keeper| {
            let (keeper, vital) = (Arc::clone(keeper), supervisor.vital(Task::Durability));
            let run = move || {
                // Dropped when the thread ends, which ends the service: without syncs no request
                // would be acknowledged.
                let _vital = vital;
                keeper.run();
            };
            thread::Builder::new().name("durability".into()).spawn(run).ok()
        });
        let leaves = config.durability.as_ref().is_some_and(|it| it.keeps_on_shutdown);
        Durable { durability, keeper, thread, leaves }
    }

    pub(super) fn logs(&self) -> Arc<Durability> {
        Arc::clone(&self.durability)
    }

    pub(super) fn keeper(&self) -> Option<Arc<Keeper>> {
        self.keeper.clone()
    }

    /// Whether the window and the queue stay on disk at a shutdown.
    pub(super) fn leaves(&self) -> bool {
        self.leaves
    }

    pub(super) fn journal(&self, shared: &Shared) -> JournalParts {
        JournalParts {
            durability: self.logs(),
            keeper: self.keeper(),
            sampler: Arc::clone(&shared.sampler),
            queue: Arc::clone(&shared.queue),
            clock: Arc::clone(&shared.clock),
            budget: Arc::clone(&shared.budget),
        }
    }

    /// Writes the remaining records, after the last request was delivered or given up, and ends the
    /// syncs.
    pub(super) async fn end(self, decider: Option<&mut Decider>) {
        if let Some(decider) = decider {
            if self.leaves {
                decider.leave().await;
            } else {
                decider.tidy_up().await;
            }
        }
        if let (Some(keeper), Some(thread)) = (self.keeper, self.thread) {
            keeper.stop();
            let _ = spawn_blocking(move || thread.join()).await;
        }
        self.durability.unlock();
    }
}

/// The capacity of the export queue: its requests have to fit into the outbox, with room for files
/// that are freed later.
pub(super) fn queue_bytes_max(config: &Config) -> usize {
    let configured = config.exporter.queue.queue_bytes_max;
    let Some(durability) = &config.durability else { return configured };
    let room = usize::try_from(durability.bytes_max / OUTBOX_PART / 4 * 3).unwrap_or(usize::MAX);
    if configured > room {
        let mib = room >> 20;
        info!(mib, "export queue: limited by max_size_mib of [durability]");
    }
    configured.min(room)
}

/// Opens the logs, if durability is configured, and reads the decisions and the outbox. Meanwhile
/// the telemetry port answers that the service is not ready.
pub(super) async fn open(
    config: &Config,
    telemetry: &TcpListener,
) -> Result<Option<Opened>, StartError> {
    let Some(durability) = &config.durability else { return Ok(None) };
    let _starting = Starting::spawn(telemetry, Credentials::handshake_at_start(config)?)?;
    let ttl = config.sampling.decision_cache_ttl.as_millis();
    let settings = Settings {
        directory: durability.directory.clone(),
        bytes_max: durability.bytes_max,
        sync_interval: durability.sync_interval,
        decisions_kept_millis: u64::try_from(ttl).unwrap_or(u64::MAX),
    };
    let opened = spawn_blocking(move || Durability::open(settings)).await;
    let unfinished = |_| StartError::Admin(std::io::ErrorKind::Interrupted.into());
    let (durability, recovered) = opened.map_err(unfinished)??;
    Ok(Some(Opened { durability: Arc::new(durability), recovered }))
}

/// Recovers the state of an earlier process: its decisions, its export queue, and its window.
pub(super) async fn recover(
    opened: Opened,
    shared: &Shared,
    intake: &Intake,
    decider: &mut Decider,
) -> Result<(), StartError> {
    let Opened { durability, mut recovered } = opened;
    let (decisions, passed) = remember(&recovered, shared)?;
    let queued: u64 = std::mem::take(&mut recovered.queued)
        .into_iter()
        .map(|queued| queue_again(queued, shared))
        .sum();
    let charge = shared.budget.hold(Holder::Decisions, passed.bytes());
    let mut sum = Replayed::default();
    for file in recovered.intake() {
        let queue = &shared.queue;
        let replay = Replay { durability: &durability, passed: &passed, intake, queue };
        let of_file = replay.file(file, recovered.watermark, decider).await?;
        sum.spans += of_file.spans;
        sum.passed_over += of_file.passed_over;
    }
    drop(charge);
    decider.relieve().await;
    durability.go_on();
    shared.clock.restart();
    let (replayed_spans, passed_over_spans) = (sum.spans, sum.passed_over);
    if decisions > 0 || queued > 0 || sum.spans > 0 {
        info!(
            replayed_spans,
            queued_spans = queued,
            passed_over_spans,
            decisions,
            "recovered the unfinished work of the last process"
        );
    }
    let records = durability.damaged();
    if records > 0 {
        let directory = durability.settings().directory.display();
        error!(
            records,
            %directory,
            "records of [durability] are damaged, so their contents are lost. `tailwater log` \
             shows where. Check the disk"
        );
    }
    Ok(())
}

/// Restores the decisions of an earlier process, oldest first. Returns their number, and the spans
/// that the replay skips.
fn remember(recovered: &Recovered, shared: &Shared) -> Result<(usize, Passed), ReadError> {
    let sampler = &shared.sampler;
    let plan = sampler.plan();
    let known = recovered.policies().filter_map(|name| Some((name, plan.id(name)?)));
    let known: HashMap<&str, PolicyId> = known.collect();
    let (mut decisions, mut unsettled) = (0, 0);
    let passed = recovered.decisions(|written| {
        let id = |id: &PolicyId| known.get(written.names.get(&id.0)?.as_str()).copied();
        for WrittenDecision { trace_id, decision, bytes, .. } in &written.decided {
            let mut decision = *decision;
            let verdict = &mut decision.verdict;
            verdict.policy = id(&verdict.policy).unwrap_or(PolicyId::NONE);
            sampler.remember(*trace_id, &decision);
            if decision.verdict.kept {
                sampler.remember_bytes(*trace_id, *bytes);
            }
        }
        for (trace_id, _, bytes) in &written.followed {
            sampler.remember_bytes(*trace_id, *bytes);
        }
        decisions += written.decided.len();
        unsettled += written.decided.len();
        if unsettled > DECISIONS_AT_ONCE {
            sampler.settle_remembered();
            unsettled = 0;
        }
    })?;
    sampler.settle_remembered();
    Ok((decisions, passed))
}

/// Queues a request of an earlier process again, and returns the number of its spans.
fn queue_again(queued: Queued, shared: &Shared) -> u64 {
    let Queued { position, body, spans } = queued;
    let credits = shared.sampler.credits(&body, &mut Scratch::default()).unwrap_or_default();
    let mut rest = spans;
    for (policy, credited) in credits {
        let credited = credited.min(rest);
        rest -= credited;
        shared.metrics.kept_before(policy, credited);
    }
    shared.metrics.kept_before(PolicyId::NONE, rest);
    shared.queue.push_again(body.into(), spans, position);
    spans
}

/// The replay of the intake log.
struct Replay<'a> {
    durability: &'a Durability,
    passed: &'a Passed,
    intake: &'a Intake,
    queue: &'a Queue,
}

impl Replay<'_> {
    async fn file(
        &self,
        file: &LogFileInfo,
        from: u64,
        decider: &mut Decider,
    ) -> Result<Replayed, ReadError> {
        let mut reader = RecordReader::open(file, from)?;
        let (mut replayer, mut sum, mut records) = (Replayer::default(), Replayed::default(), 0);
        while let Some(record) = reader.next_record()? {
            let replayed = self.record(record, decider, &mut replayer).await;
            sum.spans += replayed.spans;
            sum.passed_over += replayed.passed_over;
            records += 1;
            if records % RECORDS_AT_ONCE == 0 {
                decider.relieve().await;
                tokio::task::yield_now().await;
            }
        }
        self.durability.note_damaged(reader.damaged());
        Ok(sum)
    }

    /// Replays a request, and waits for memory if there is not enough: as long as it takes to
    /// deliver the export queue, which may hold more than a lowered limit.
    async fn record(
        &self,
        record: Record<'_>,
        decider: &mut Decider,
        replayer: &mut Replayer,
    ) -> Replayed {
        let (mut attempts, mut waits) = (0, 0u32);
        let refusal = loop {
            match self.intake.replay(record, self.durability, self.passed, replayer).await {
                Ok(replayed) => return replayed,
                Err(Refusal::Memory) if attempts < ROOM_ATTEMPTS => {}
                Err(refusal) => break refusal,
            }
            attempts = if self.queue.is_empty() { attempts + 1 } else { 0 };
            waits += 1;
            if waits % ROOM_ATTEMPTS == 0 {
                warn!(
                    "no memory to go on with the work of the last process: waiting for the backend \
                     to accept the export queue. If it is well, raise memory_limit_mib"
                );
            }
            decider.relieve().await;
            sleep(ROOM_PAUSE).await;
        };
        self.durability.note_damaged(1);
        let position = record.header.position;
        warn!(position, %refusal, "cannot replay a request of the last process: spans are lost");
        Replayed::default()
    }
}

/// Ends the delivery: consumers finish the requests that they have sent, and begin no others.
pub(super) async fn leave(
    decider: Option<&mut Decider>,
    queue: &Queue,
    consumers: &mut JoinSet<()>,
) {
    queue.hold_back();
    let finish = async { while consumers.join_next().await.is_some() {} };
    if let Some(decider) = decider {
        decider.leave().await;
    }
    // Consumers that wait for a retry are told to give up right afterwards.
    let _ = timeout(LEAVE_TIMEOUT, finish).await;
}
