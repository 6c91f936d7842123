//! Measures one abuse: the honest client alone, then under the attack, then until the server has
//! calmed down.

use std::{
    collections::HashSet,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::runtime::Runtime;

use crate::{
    Result,
    attacks::{Abuse, Found, Kind},
    data, flood, hold,
    honest::{self, Arrived, Honest, Seen},
    target::{Server, Target, resident_mib},
};

/// How long the honest client's baseline is measured.
const ALONE: Duration = Duration::from_secs(1);
/// The longest time from an acknowledgement to the sink: the wait for the decision, and a busy
/// machine.
const DELIVERED_MAX: Duration = Duration::from_secs(15);
const SAMPLE: Duration = Duration::from_millis(20);
/// The allowed difference, because sockets of the honest client and the exporter come and go.
const DESCRIPTORS_MORE: usize = 8;

/// The server to attack, and the duration of the attack.
pub(crate) struct Plan {
    pub(crate) server: Server,
    pub(crate) attack: Duration,
    pub(crate) calm: Duration,
}

/// Resident MiB before, at most, and after calming down; CPU seconds; descriptors.
struct Cost {
    rss: [f64; 3],
    cpu_during: f64,
    cpu_after: f64,
    descriptors: [usize; 2],
}

/// The observations of the honest client.
struct Beside {
    alone: Seen,
    under: Seen,
    failed: u64,
    last_failure: Option<String>,
    acknowledged: usize,
    lost: usize,
    /// Whether a new connection is served after the attack.
    is_fresh_served: bool,
}

pub(crate) fn print_head() {
    println!(
        "| | abuse | what came of it | RSS before / most / after, MiB | CPU s during / after | \
         honest acknowledged / failed / lost | p99 alone / under, ms | descriptors before / after |"
    );
    println!("|---|---|---|---|---|---|---|---|");
}

/// Prints a row. Returns the promises that Tailwater has broken.
pub(crate) fn run(plan: &Plan, abuse: &Abuse) -> Result<Vec<String>> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (sink, arrived) = runtime.block_on(honest::sink())?;
    let target = Target::start(&plan.server, sink.address, abuse.descriptors)?;
    let outcome = attack(plan, abuse, &runtime, &target, &arrived);
    let stopped = target.stop();
    runtime.shutdown_background();
    let (number, name) = (abuse.number, abuse.name);
    let is_judged = matches!(plan.server, Server::Tailwater(_));
    let (found, cost, beside) = match outcome.and_then(|outcome| stopped.map(|()| outcome)) {
        Ok(outcome) => outcome,
        Err(error) => {
            let first = error.to_string().lines().next().unwrap_or_default().to_owned();
            println!("| {number} | {name} | ended: {first} | | | | | |");
            return Ok(vec![format!("{number}: {error}")]);
        }
    };
    let goaway = found.goaway.map_or(String::new(), |code| format!(", GOAWAY {code}"));
    let closed =
        if found.closed > 0 { format!("{} closed{goaway}; ", found.closed) } else { String::new() };
    let accounting = found.accounting.map_or(String::new(), |(budget, rss)| {
        format!("; one request: budget +{budget:.0}, RSS +{rss:.0} MiB")
    });
    let [before, most, after] = cost.rss;
    println!(
        "| {number} | {name} | {closed}{}{accounting} | {before:.0} / {most:.0} / {after:.0} | \
         {:.2} / {:.2} | {} / {} / {} | {:.1} / {:.1} | {} / {} |",
        found.note,
        cost.cpu_during,
        cost.cpu_after,
        beside.acknowledged,
        beside.failed,
        beside.lost,
        beside.alone.p99_ms(),
        beside.under.p99_ms(),
        cost.descriptors[0],
        cost.descriptors[1],
    );
    Ok(if is_judged { judge(abuse, &found, &cost, &beside) } else { Vec::new() })
}

fn judge(abuse: &Abuse, found: &Found, cost: &Cost, beside: &Beside) -> Vec<String> {
    let grown = cost.rss[1] - cost.rss[0];
    let expectations = [
        (beside.failed == 0, format!("honest requests failed: {:?}", beside.last_failure)),
        (beside.lost == 0, "honest spans were lost".to_owned()),
        (!abuse.must_close || found.closed > 0, "no connection was closed".to_owned()),
        (grown <= abuse.rss_mib_max, format!("RSS grew by {grown:.0} MiB")),
        (abuse.number != "10" || found.refused > 0, "no stream was refused".to_owned()),
        (
            found.is_fresh_served != Some(false) || abuse.descriptors > 0,
            "new connections are not served meanwhile".to_owned(),
        ),
        (beside.is_fresh_served, "new connections are not served afterwards".to_owned()),
        (
            cost.descriptors[1] <= cost.descriptors[0] + DESCRIPTORS_MORE,
            "descriptors are not given back".to_owned(),
        ),
    ];
    let broken = expectations.into_iter().filter(|(holds, _)| !holds);
    broken.map(|(_, what)| format!("{} {}: {what}", abuse.number, abuse.name)).collect()
}

fn attack(
    plan: &Plan,
    abuse: &Abuse,
    runtime: &Runtime,
    target: &Target,
    arrived: &Arrived,
) -> Result<(Found, Cost, Beside)> {
    let body = if let Kind::Data(body) = &abuse.kind { Some(body()) } else { None };
    let honest = runtime.block_on(Honest::start(target.grpc))?;
    thread::sleep(ALONE);
    let alone = honest.take();
    let (rss_before, descriptors_before) = (target.rss_mib()?, target.descriptors()?);
    let cpu_before = target.cpu_seconds()?;
    let most = Most::watch(target.pid());

    let until = Instant::now() + plan.attack;
    let fresh = || runtime.block_on(honest::fresh(target.grpc));
    let account = || target.budget_mib().zip(target.rss_mib().ok());
    let found = match &abuse.kind {
        Kind::Flood(flood) => flood::run(target.grpc, flood, until)?,
        Kind::Hold(hold) => hold::run(target.grpc, hold, until, &fresh)?,
        Kind::Wrong => runtime.block_on(data::wrong(target.grpc))?,
        Kind::Data(_) => {
            let body = body.ok_or("a body")?;
            runtime.block_on(data::run(target.grpc, &body, until, account))?
        }
    };
    let cpu_attacked = target.cpu_seconds()?;
    let under = honest.take();
    thread::sleep(plan.calm);
    let cost = Cost {
        rss: [rss_before, most.stop(), target.rss_mib()?],
        cpu_during: cpu_attacked - cpu_before,
        cpu_after: target.cpu_seconds()? - cpu_attacked,
        descriptors: [descriptors_before, settled(target, descriptors_before)?],
    };
    let after = honest.take();
    let is_fresh_served = fresh().is_some();
    let beside = Beside { is_fresh_served, ..beside(alone, under, after, arrived) };
    Ok((found, cost, beside))
}

fn beside(alone: Seen, under: Seen, after: Seen, arrived: &Arrived) -> Beside {
    let all = [&alone, &under, &after];
    let acknowledged: HashSet<u64> =
        all.iter().flat_map(|seen| seen.acknowledged.iter().copied()).collect();
    let began = Instant::now();
    let lost = loop {
        let arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = acknowledged.difference(&arrived).count();
        if lost == 0 || began.elapsed() > DELIVERED_MAX {
            break lost;
        }
        drop(arrived);
        thread::sleep(SAMPLE);
    };
    let failed = all.iter().map(|seen| seen.failed).sum();
    let last_failure = all.iter().find_map(|seen| seen.last_failure.clone());
    let acknowledged = acknowledged.len();
    Beside { failed, last_failure, acknowledged, lost, alone, under, is_fresh_served: true }
}

/// The number of open descriptors after the attack. Waits until it has returned to its former
/// value, or until it is clear that it will not: after half a preface, the server keeps a
/// connection that its sender has closed for as long as an open one.
fn settled(target: &Target, before: usize) -> Result<usize> {
    let began = Instant::now();
    loop {
        let now = target.descriptors()?;
        if now <= before + DESCRIPTORS_MORE || began.elapsed() > DELIVERED_MAX {
            return Ok(now);
        }
        thread::sleep(SAMPLE);
    }
}

/// Watches a process and keeps its highest resident memory.
struct Most {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<f64>,
}

impl Most {
    fn watch(pid: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stops = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut most = 0_f64;
            while !stops.load(Relaxed) {
                most = most.max(resident_mib(pid).unwrap_or(0.0));
                thread::sleep(SAMPLE);
            }
            most
        });
        Most { stop, thread }
    }

    fn stop(self) -> f64 {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap_or(0.0)
    }
}
