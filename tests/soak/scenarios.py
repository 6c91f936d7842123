"""The scenarios: the faults, what must hold, and the figures. See README.md."""

import argparse
import random
import signal
import statistics
import sys
import time

import faults
from processes import (KEEP_ALL, LOGS, POLICIES, SOON_STEADY, Broken, Sampler, Service, Sink, end_all,
                       load, wait_for)

NOMINAL = 20_000
MIB = 1 << 20


def check(promise, holds):
    """One line of the table; remembers a broken promise."""
    print(f"  {'ok  ' if holds else 'FAIL'} {promise}", flush=True)
    if not holds:
        check.broken += 1


check.broken = 0


def say(text):
    print(f"       {text}", flush=True)


def soak(options):
    """Mixed faults, one after the other; at the end everything is as it was at the beginning."""
    sink = Sink()
    service = Service(sink, remembered=SOON_STEADY)
    sampler = Sampler(service)
    generator = load(service.grpc, NOMINAL, "--retry", in_flight=16)
    time.sleep(min(20, options.seconds / 6))
    calm, begin = generator.lap(), time.monotonic()
    every = min(30, options.seconds / 12)
    order = list(faults.ALL)
    random.Random(options.seed).shuffle(order)
    number, of_spikes = 0, 0
    while time.monotonic() < begin + options.seconds:
        at = begin + number * every
        time.sleep(max(0, at - time.monotonic()))
        name = order[number % len(order)]
        say(f"{time.monotonic() - begin:6.0f} s  {name}")
        of_spikes += faults.ALL[name](service, sink, min(5, every / 3)) or 0
        number += 1
    lap = generator.end()
    metrics = service.at_rest(120)
    rows = sampler.end()
    acknowledged = calm["spans"] + lap["spans"] + of_spikes
    accepted, sent = (metrics.sum(m) for m in
                      ("receiver_accepted_spans_total", "exporter_sent_spans_total"))
    say(f"{number} faults; acknowledged {acknowledged:,} spans, accepted {accepted:,.0f}, sent "
        f"{sent:,.0f}, requests sent again {lap['retries']}")
    say(f"acknowledgement p99 {calm['ack_p99_ms']:.0f} ms before, {lap['ack_p99_ms']:.0f} ms in all")
    check("the ledger is exact, and has every span that was acknowledged", accepted >= acknowledged)
    check("no request was given up by its sender", lap["failed_requests"] == 0)
    check("the backend has at least what counts as sent", sink.spans() >= sent)
    check("no panic", metrics.sum("task_restarts_total") == 0)
    flat(rows, service)
    check("exits clean", service.stop() < 31)


def flat(rows, service):
    """Compares memory, descriptors and threads at the end of a run with its first half."""
    # Memory is compared at its peaks: a fault that fills it does so in both halves.
    warm = rows[len(rows) // 4:len(rows) * 5 // 8]
    end = rows[len(rows) * 5 // 8:]
    first, last = (max(row["rss"] for row in part) for part in (warm, end))
    seconds = [row["at"] - rows[0]["at"] for row in warm + end]
    slope = statistics.linear_regression(seconds, [row["rss"] for row in warm + end]).slope
    middle = statistics.median(row["rss"] for row in warm + end)
    say(f"resident {first / MIB:.0f} MiB at most while warm, {last / MIB:.0f} MiB later; median "
        f"{middle / MIB:.0f} MiB, slope {100 * slope * 3600 / middle:+.1f} %/h "
        f"over {seconds[-1] - seconds[0]:.0f} s")
    check("memory is flat, within 10 % and 4 MiB", last <= 1.1 * first + 4 * MIB)
    check("memory is within the limit + 10 %",
          max(first, last) <= 1.1 * service.memory_limit)
    descriptors, threads = service.descriptors(), service.proc("Threads")
    say(f"descriptors {rows[0]['fds']} at the start, {descriptors} at rest, "
        f"{max(r['fds'] for r in rows)} at most; threads {rows[0]['threads']}, {threads}, "
        f"{max(r['threads'] for r in rows)}")
    # At rest, the load's connections are gone and the exporter's is open.
    check("descriptors and threads are back", descriptors <= rows[0]["fds"] + 4
          and threads <= rows[0]["threads"] + 2)


def overload(options):
    """Ten times nominal from senders that ignore back-pressure, beside one that does not."""
    sink = Sink()
    # The nominal load takes less than half of the memory: five and a half seconds of 14 MB/s.
    service = Service(sink, wait="30s", after_root="5s", memory_mib=options.memory_mib)
    sampler = Sampler(service, every=0.5, with_metrics=True)
    nominal = load(service.grpc, NOMINAL, "--retry", in_flight=32)
    time.sleep(12)
    before = nominal.lap()
    crowd = load(service.grpc, 9 * NOMINAL, "--persist", connections=8, in_flight=8,
                 seconds=options.seconds)
    began = time.monotonic()
    crowd_lap = crowd.answer(options.seconds + 90)
    seconds = time.monotonic() - began
    during = nominal.lap()
    back = time.monotonic()
    is_calm = lambda: service.metrics()["memory_used_bytes"] < 0.8 * service.memory_limit
    wait_for("memory below the soft limit", is_calm, 60)
    calm_after = time.monotonic() - back
    time.sleep(10)
    nominal.lap()
    time.sleep(10)
    after = nominal.lap()
    nominal.end()
    metrics = service.at_rest(120)
    rows = [row for row in sampler.end() if "metrics" in row]
    refused = [row["at"] - began for row in rows
               if row["metrics"].sum("receiver_refused_requests_total") > 0]
    full = [row["at"] - began for row in rows
            if row["metrics"]["memory_used_bytes"] > 0.99 * service.memory_limit]
    most = sampler.most("rss")
    # The senders that ignore back-pressure count too: acknowledged spans are kept or dropped by
    # policy.
    goodput = (during["spans"] + crowd_lap["spans"]) / seconds
    say(f"offered {10 * NOMINAL:,} spans/s for {seconds:.0f} s, acknowledged {goodput:,.0f}/s; "
        f"{crowd_lap['failed_requests']:,} requests refused")
    say(f"early decisions {metrics.sum('decisions_total', 'memory'):,.0f}, refused requests "
        f"{metrics.sum('receiver_refused_requests_total'):,.0f}, first after "
        f"{min(refused):.1f} s" if refused else "nothing was refused")
    say(f"memory full after {min(full):.1f} s" if full else "memory was never full")
    say(f"resident {most / MIB:.0f} MiB at most, {most / service.memory_limit:.2f} of the limit; "
        f"memory below the soft limit {calm_after:.1f} s after")
    for name, lap in (("before", before), ("during", during), ("after", after)):
        say(f"the patient sender {name}: p50 {lap['ack_p50_ms']:.0f} ms, p99 "
            f"{lap['ack_p99_ms']:.0f} ms, sent again {lap['retries']}, "
            f"given up {lap['failed_requests']}")
    check("resident memory is within the limit + 10 %", most <= 1.1 * service.memory_limit)
    check("goodput is at least 80 % of nominal", goodput >= 0.8 * NOMINAL)
    check("back to normal in 30 s", calm_after < 30 and after["ack_p99_ms"] < 1_000)
    check("the patient sender loses nothing", during["failed_requests"] == 0)
    check("errors were decided by the policies, early ones too",
          metrics.sum("traces_kept_total", '"errors"') > 0)
    service.stop()


def fair(options):
    """One sender at a hundred times the rate of ten others, on a connection of its own."""
    sink = Sink()
    service = Service(sink, wait="30s", after_root="5s", memory_mib=options.memory_mib)
    others = load(service.grpc, NOMINAL, "--retry", connections=10, in_flight=8)
    time.sleep(12)
    before = others.lap()
    hot = load(service.grpc, 100 * NOMINAL // 10, "--persist", connections=1, in_flight=64,
               seconds=options.seconds)
    hot_lap = hot.answer(options.seconds + 90)
    during = others.lap()
    others.end()
    metrics = service.at_rest(120)
    say(f"the hot one: {hot_lap['spans'] / hot_lap['seconds']:,.0f} spans/s acknowledged, "
        f"{hot_lap['failed_requests']:,} requests refused")
    for name, lap in (("before", before), ("beside it", during)):
        say(f"ten others {name}: p50 {lap['ack_p50_ms']:.0f} ms, p99 {lap['ack_p99_ms']:.0f} ms, "
            f"sent again {lap['retries']}, given up {lap['failed_requests']}")
    say(f"early decisions {metrics.sum('decisions_total', 'memory'):,.0f}")
    check("the others lose nothing", during["failed_requests"] == 0)
    service.stop()


def crowd(options):
    """A thousand senders that all send at once, are refused, and return when told to."""
    senders, cycles = 1000, 3
    sink = Sink()
    service = Service(sink, wait="30s", after_root="5s", memory_mib=options.memory_mib)
    sampler = Sampler(service, every=0.5, with_metrics=True)
    generator = load(service.grpc, 6 * NOMINAL, "--retry", connections=senders, in_flight=1)
    time.sleep(5)
    resumed = []
    for _ in range(cycles):
        # During the stop every sender gets a request that waits: 117 become due each second.
        service.signal(signal.SIGSTOP)
        time.sleep(9)
        service.signal(signal.SIGCONT)
        resumed.append(time.monotonic())
        time.sleep(options.seconds / cycles)
    lap = generator.end()
    metrics = service.at_rest(120)
    rows = [row for row in sampler.end() if "metrics" in row]
    say(f"{lap['retries']:,} sent again, {lap['requests']:,} taken, "
        f"{lap['failed_requests']:,} given up; "
        f"{metrics.sum('receiver_refused_requests_total'):,.0f} refusals")
    worst = 0
    for cycle, at in enumerate(resumed):
        counts = [(row["at"] - at, row["metrics"].sum("receiver_refused_requests_total"))
                  for row in rows if at <= row["at"] < at + options.seconds / cycles]
        steps = [(b[0], b[1] - a[1]) for a, b in zip(counts, counts[1:])]
        later = max((count for since, count in steps if since > 2), default=0)
        worst = max(worst, later)
        say(f"cycle {cycle + 1}: {counts[-1][1] - counts[0][1]:,.0f} refusals, at most "
            f"{max(count for _, count in steps):,.0f} in half a second, {later:,.0f} after 2 s")
    most = sampler.most("rss")
    say(f"resident {most / MIB:.0f} MiB at most, {most / service.memory_limit:.2f} of the limit")
    check("everything is taken in the end", lap["failed_requests"] == 0)
    check("they come back spread: no quarter of them is refused again in one half second",
          worst <= senders / 4)
    check("memory is within the limit + 10 %", most <= 1.1 * service.memory_limit)
    service.stop()


def kill(options):
    """SIGKILL at random times, with everything kept: only the spans that waited are lost."""
    sink = Sink()
    service = Service(sink, policies=KEEP_ALL, wait="1s", after_root="0s")
    randomness = random.Random(options.seed)
    most, lost_all, sent_all, ready = 0.0, 0, 0, []
    for _ in range(options.times):
        before = sink.spans()
        generator = load(service.grpc, NOMINAL, "--persist", connections=2)
        time.sleep(randomness.uniform(0.1, 2.5))
        lap_before = generator.lap()
        service.signal(signal.SIGKILL)
        service.child.wait()
        generator.child.terminate()
        acknowledged = lap_before["spans"] + generator.answer()["spans"]
        generator.child.wait()
        # Requests under way to the sink at the kill may still arrive.
        time.sleep(0.05)
        lost = acknowledged - (sink.spans() - before)
        most, lost_all, sent_all = max(most, lost), lost_all + lost, sent_all + acknowledged
        ready.append(service.start())
    bound = NOMINAL * (1 + 0.5)
    say(f"{options.times} kills: {sent_all:,} spans acknowledged, {lost_all:,} lost, "
        f"{most:,.0f} at most at once; the bound is {bound:,.0f}")
    say(f"ready again after {1e3 * statistics.median(ready):.0f} ms, {1e3 * max(ready):.0f} ms at most")
    check("no kill loses more than rate x (decision_wait + 0.5 s)", most <= bound)
    check("ready in a second", max(ready) < 1)
    service.stop()


def pause(options):
    """SIGSTOP under load, for longer than the window."""
    sink = Sink()
    # There is space for everything that waits at the senders by then. A request that is refused, or
    # that its sender gives up, is sent again seconds later, and its spans may be late by that time.
    service = Service(sink, wait="4s", after_root="2s", memory_mib=2048)
    # The root comes a second after the first spans of its trace.
    generator = load(service.grpc, NOMINAL, "--root-after", "1s", in_flight=16, connections=8)
    time.sleep(10)
    generator.lap()
    before = service.metrics()
    service.signal(signal.SIGSTOP)
    time.sleep(options.seconds)
    service.signal(signal.SIGCONT)
    time.sleep(15)
    after, lap = service.metrics(), generator.end()
    metrics = service.at_rest()
    late = metrics.sum("late_spans_total") - before.sum("late_spans_total")
    rootless = (after.sum("decisions_total", "decision_wait")
                - before.sum("decisions_total", "decision_wait"))
    window = before["window_traces"]
    say(f"stopped for {options.seconds} s with {window:,.0f} traces in the window; then "
        f"{late:,.0f} late spans, {rootless:,.0f} traces decided without their root, "
        f"stalled_seconds_total {metrics.get('stalled_seconds_total', 0):.0f}")
    check("no trace of the window was decided without its late parts", late == 0 and rootless == 0)
    check("no request failed", lap["failed_requests"] == 0)
    service.stop()


def reload(options):
    """Reloads under load; every other one is invalid, some of swapped or cut files."""
    sink = Sink()
    service = Service(sink, remembered=SOON_STEADY)
    files = faults.ConfigMap(service)
    sampler = Sampler(service)
    generator = load(service.grpc, NOMINAL)
    time.sleep(3)
    every, begin, slowest = options.seconds / options.reloads, time.monotonic(), 0.0
    for number in range(options.reloads):
        time.sleep(max(0, begin + number * every - time.monotonic()))
        is_valid = number % 2 == 0
        files.swap(number, is_valid)
        asked, at = time.monotonic(), "config_last_reload_success_timestamp_seconds"
        last = service.metrics()[at]
        service.signal(signal.SIGHUP)
        if is_valid:
            wait_for("the new policies", lambda: service.metrics()[at] > last, 10, 0.01)
        else:
            is_refused = lambda: service.metrics()["config_last_reload_successful"] == 0
            wait_for("a refusal", is_refused, 10, 0.01)
        slowest = max(slowest, time.monotonic() - asked)
    lap = generator.end()
    metrics = service.at_rest()
    rows = sampler.end()
    say(f"{options.reloads} reloads in {time.monotonic() - begin:.0f} s, the slowest took effect "
        f"after {1e3 * slowest:.0f} ms, the scrape that saw it included")
    say(f"{lap['requests']:,} requests, {lap['failed_requests']} refused, p99 "
        f"{lap['ack_p99_ms']:.0f} ms")
    check("no request was refused and no connection dropped", lap["failed_requests"] == 0)
    check("applied in a second", slowest < 1)
    check("nothing was refused by the service",
          metrics.sum("receiver_refused_requests_total") == 0)
    flat(rows, service)
    files.swap(options.reloads, True)
    service.signal(signal.SIGHUP)
    check("a reload that races the shutdown holds nothing up", service.stop() < 31)


def stop(options):
    """SIGTERM under load: with healthy peers, with stuck clients, with a stuck backend."""
    for times in range(options.times):
        sink = Sink()
        service = Service(sink, policies=KEEP_ALL, wait="30s", after_root="0s", memory_mib=1024,
                          more='shutdown_timeout = "8s"')
        generator = load(service.grpc, NOMINAL, "--persist", in_flight=8)
        time.sleep(2 + times % 3)
        stuck = faults.hold_connections(service, 20) if times % 2 else []
        seconds = service.stop(seconds=12)
        generator.child.terminate()
        acknowledged, received = generator.answer()["spans"], sink.spans()
        say(f"{acknowledged:,} spans acknowledged, {received:,} delivered, ended after "
            f"{seconds:.1f} s{', 20 stuck clients' if stuck else ''}")
        check("nothing that was acknowledged is lost", received >= acknowledged)
        check("ended within shutdown_timeout with exit code 0", seconds < 8.5)
        for connection in stuck:
            connection.close()
        end_all()
    sink = Sink()
    service = Service(sink, policies=KEEP_ALL, wait="30s", after_root="0s", memory_mib=1024,
                      more='shutdown_timeout = "4s"')
    generator = load(service.grpc, NOMINAL, "--persist", in_flight=8)
    time.sleep(2)
    sink.signal(signal.SIGSTOP)
    seconds = service.stop(expected=1, seconds=8)
    says = '"spans":' in service.log.read_text().splitlines()[-1]
    check(f"with a stuck backend: exit code 1 after {seconds:.1f} s, and the log says how many "
          "spans", says and seconds < 4.5)


def scrape(options):
    """/metrics of a thousand policies under load."""
    policies = "".join(POLICIES.replace('name = "', f'name = "p{n}-') for n in range(333))
    sink = Sink()
    service = Service(sink, policies=policies, wait="4s", after_root="2s", memory_mib=512)
    generator = load(service.grpc, NOMINAL)
    time.sleep(6)
    before, took = generator.lap(), []
    while generator and len(took) < 4 * options.seconds:
        begin = time.monotonic()
        status, text = service.get("/metrics")
        took.append(time.monotonic() - begin)
        time.sleep(0.25)
    lap = generator.end()
    series = sum(not line.startswith("#") for line in text.splitlines())
    say(f"{series:,} series, {len(text) / MIB:.1f} MiB; {len(took)} scrapes: median "
        f"{1e3 * statistics.median(took):.0f} ms, {1e3 * max(took):.0f} ms at most")
    say(f"acknowledgement p99 {before['ack_p99_ms']:.0f} ms before, {lap['ack_p99_ms']:.0f} ms while scraped")
    check("a scrape takes less than 50 ms", statistics.median(took) < 0.05)
    check("no request failed", lap["failed_requests"] == 0)
    service.at_rest()
    service.stop()


def clock(options):
    """The wall clock steps by hours and by seconds, and drifts, under load (libfaketime)."""
    library, wall = faults.faketime(), LOGS / "wall-clock"
    wall.write_text("+0")
    environment = {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(wall),
                   "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    sink = Sink()
    service = Service(sink, wait="4s", after_root="2s", environment=environment)
    generator = load(service.grpc, NOMINAL, "--root-after", "1s", in_flight=16)
    time.sleep(6)
    before, seen = service.metrics(), []
    steps = ("+3600", "-3600", "+1", "-1", "+0 x1.05", "+0 x1.5", "+0")
    for step in steps:
        wall.write_text(step)
        time.sleep(options.seconds / len(steps))
        service.signal(signal.SIGHUP)
        time.sleep(0.5)
        at = service.metrics()["config_last_reload_success_timestamp_seconds"]
        seen.append(round(at - time.time()))
    after, lap = service.metrics(), generator.end()
    metrics = service.at_rest()
    late = metrics.sum("late_spans_total")
    rootless = (after.sum("decisions_total", "decision_wait")
                - before.sum("decisions_total", "decision_wait"))
    lag = after["decision_lag_seconds_sum"] / after["decision_lag_seconds_count"]
    say(f"the service saw the time {seen} s off; {late:.0f} late spans, {rootless:.0f} traces decided "
        f"without their root, mean lag {1e3 * lag:.0f} ms, {lap['failed_requests']} requests failed")
    check("the steps reached the service", seen[0] > 3500 and seen[1] < -3500)
    check("no trace was decided early or late for it", late == 0 and rootless == 0 and lag < 0.5)
    check("no request failed", lap["failed_requests"] == 0)
    service.stop()


def outage(options):
    """The backend is killed for a while, then hangs for 40 s; everything is kept."""
    rate, span_bytes = NOMINAL // 4, 750
    # The formula of the documentation: kept spans per second x their bytes x seconds, and a third
    # more.
    queue_mib = 16 + rate * span_bytes * (options.seconds + 30) * 4 // 3 // MIB
    queue = f"[exporter.otlp.sending_queue]\nqueue_size_mib = {queue_mib}"
    sink = Sink()
    service = Service(sink, policies=KEEP_ALL, memory_mib=2 * queue_mib + 256, more=queue,
                      patience=f"{options.seconds + 120}s")
    generator = load(service.grpc, rate)
    time.sleep(10)
    outages = ((options.seconds, sink.go, sink.come_back),
               (40, lambda: sink.signal(signal.SIGSTOP), lambda: sink.signal(signal.SIGCONT)))
    for seconds, go, come_back in outages:
        go()
        time.sleep(seconds)
        at_return = service.metrics()
        come_back()
        returned = time.monotonic()
        delivered(service, rate, at_return, returned)
    lap = generator.end()
    metrics = service.at_rest()
    accepted, lost = (metrics.sum(m) for m in
                      ("receiver_accepted_spans_total", "exporter_failed_spans_total"))
    say(f"{lost:.0f} of {accepted:,.0f} spans lost, {lap['failed_requests']} requests failed; "
        f"resident {service.proc('VmHWM') / MIB:.0f} MiB at most, queue of {queue_mib} MiB")
    check("nothing was lost or refused", lost == 0 and lap["failed_requests"] == 0)
    # The backend could not report the spans that it took in the moment before it was killed.
    check("the backend has what counts as sent", sink.spans() >= accepted - rate)
    service.stop()


def delivered(service, rate, at_return, returned):
    """Waits until the backlog of an outage is sent."""
    queued, sent = at_return["exporter_queue_spans"], at_return.sum("exporter_sent_spans_total")
    wait_for("the first spans sent",
             lambda: service.metrics().sum("exporter_sent_spans_total") > sent, 60)
    first = time.monotonic() - returned
    # Spans that are on their way at any time are not a backlog.
    wait_for("the queue empty", lambda: service.metrics()["exporter_queue_spans"] < 4 * rate, 300)
    seconds = time.monotonic() - returned - first
    speed = queued / max(seconds, 0.1) + rate
    say(f"{queued:,.0f} spans queued; the first sent {first:.1f} s after the return, empty "
        f"{seconds:.1f} s later, at {speed / rate:.0f} times nominal")
    check("the first sent within 30 s", first <= 30)
    check("empty within 180 s, at twice nominal or more", seconds <= 180 and speed >= 2 * rate)


SCENARIOS = {name.__name__: name for name in
             (soak, overload, fair, crowd, kill, pause, reload, stop, scrape, clock, outage)}
SECONDS = {"soak": 600, "overload": 600, "fair": 60, "crowd": 60, "pause": 30, "reload": 600,
           "scrape": 30, "clock": 35, "outage": 300}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--seconds", type=int, help="how long, where the scenario has a length")
    parser.add_argument("--times", type=int, help="kills (200), or stops (4)")
    parser.add_argument("--reloads", type=int, default=1000)
    parser.add_argument("--memory-mib", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.seconds = options.seconds or SECONDS.get(options.scenario)
    options.times = options.times or {"kill": 200, "stop": 4}.get(options.scenario)
    print(f"{options.scenario}: {SCENARIOS[options.scenario].__doc__}", flush=True)
    try:
        SCENARIOS[options.scenario](options)
    except Broken as broken:
        check(str(broken), False)
    finally:
        end_all()
    sys.exit(check.broken > 0)


if __name__ == "__main__":
    main()
