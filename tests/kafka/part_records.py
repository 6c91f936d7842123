"""Both encodings, every compression, and records that are not what they should be."""

import contextlib
import random

from children import TroubleError, wait_until
from compare import compare
from instance import Instance
from run import Run
from traffic import Topic, Trace, as_json, make_trace, request

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
TRACES = 60


def write(run: Run, topic: str, encoded, rng: random.Random) -> list[Trace]:
    """Traces of two records each, with every compression."""
    traces = []
    for codec in CODECS:
        written = run.topic(topic, codec)
        made = [make_trace(rng, 4, payload=200) for _ in range(TRACES)]
        for part in range(2):
            for trace in made:
                written.put(encoded(request(trace.spans[part::2])), trace.id.hex().encode())
        written.flush()
        traces += made
    return traces


def check_counts(run: Run, one: Instance, records: int, undecodable: int) -> None:
    m = one.metrics()
    got = {
        name: m.total(name) for name in ("kafka_records_total", "kafka_undecodable_records_total")
    }
    wanted = dict(zip(got, (records, undecodable), strict=True))
    run.check(f"{one.name}: records are counted", [] if got == wanted else [f"{got}, not {wanted}"])


def hostile(run: Run, topic: str, rng: random.Random) -> tuple[list[Trace], int, int]:
    """Bad records between good ones, on one partition; the good traces, all and bad records."""
    written = run.topic(topic, "zstd")
    good = [make_trace(rng, 2) for _ in range(40)]
    whole = request(make_trace(rng, 3).spans).SerializeToString()
    huge = make_trace(rng, 1)
    while huge.expected:
        huge = make_trace(rng, 1)
    huge.spans[0].attributes[0].value.string_value = "x" * (66 << 20)
    bad = [
        (None, b"null"),
        (b"\xff" * 100, b"garbage"),
        (whole[:-3], b"cut off"),
        (b'{"resourceSpans": 7}', b"JSON"),
        (request(huge.spans).SerializeToString(), b"too large"),
    ]
    fine = [(b"", b"empty"), (b"", None)]
    for number, trace in enumerate(good):
        value = request(trace.spans).SerializeToString()
        # A record without key is read like any other.
        written.put(value, None if number % 2 else trace.id.hex().encode(), partition=0)
        if number % 5 == 0 and (bad_or_fine := (bad + fine)[number // 5 : number // 5 + 1]):
            written.put(*bad_or_fine[0], partition=0)
    written.flush()
    return good, len(good) + len(bad) + len(fine), len(bad)


def transactions(run: Run, topic: str, rng: random.Random) -> list[Trace]:
    """A committed and an aborted transaction. Each leaves a marker: an offset without a record."""
    settings = {"transactional.id": topic}
    written = Topic(run.broker.address, topic, **settings)
    written.producer.init_transactions(30)
    kept = []
    for is_aborted in (True, False):
        made = [make_trace(rng, 2) for _ in range(40)]
        written.producer.begin_transaction()
        for trace in made:
            written.put_trace(trace, partition=0)
        written.flush()
        if is_aborted:
            written.producer.abort_transaction(30)
        else:
            written.producer.commit_transaction(30)
            kept += made
    return kept


def part(run: Run) -> None:
    rng = random.Random(run.told.seed)
    for encoding, encoded in (
        ("otlp_proto", lambda r: r.SerializeToString()),
        ("otlp_json", as_json),
    ):
        topic = f"records-{encoding[5:]}"
        run.broker.create(topic, 3)
        one = run.instance(topic, topic, kafka={"encoding": encoding}).start()
        traces = write(run, topic, encoded, rng)
        run.settle(topic, [one], f"{encoding}, {', '.join(CODECS)}", traces)
        check_counts(run, one, 2 * len(traces), 0)
        one.stop()
    topic = "records-hostile"
    run.broker.create(topic, 2, max_message_bytes=80 << 20)
    one = run.instance(topic, topic).start()
    good, records, undecodable = hostile(run, topic, rng)
    run.settle(topic, [one], "bad records between good ones", good)
    check_counts(run, one, records, undecodable)
    told = (
        []
        if "undecodable" in one.log() or "cannot be decoded" in one.log()
        else [one.log()[-2000:]]
    )
    run.check("the log tells of records that cannot be decoded", told)
    one.stop()
    topic = "records-transactions"
    run.broker.create(topic, 1)
    traces = transactions(run, topic, rng)
    one = run.instance(topic, topic).start()
    # The marker at the end is not a record; it must not keep traces undecided.
    with contextlib.suppress(TroubleError):
        wait_until("delivery", lambda: not compare(traces, [one.sink]).lost, 20)
    result = compare(traces, [one.sink])
    run.say(f"transactions: {result}")
    run.check(
        "what a transaction has committed arrives, and nothing that it has aborted", result.problems
    )
    one.stop()
