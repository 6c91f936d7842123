"""TLS with a password, right and wrong, and TLS with certificates."""

import random

from broker import USER
from children import wait_until
from run import Run
from traffic import Trace, make_trace

MECHANISM = "SCRAM-SHA-512"


def produce(run: Run, topic: str) -> list[Trace]:
    rng, written = random.Random(run.told.seed), run.topic(topic)
    traces = [make_trace(rng, 3) for _ in range(50)]
    for trace in traces:
        written.put_trace(trace)
    written.flush()
    return traces


def part(run: Run) -> None:
    folder = run.children.folder
    ca = {"ca_file": str(folder / "ca.crt")}
    (folder / "right").write_text(run.broker.password + "\n")
    (folder / "wrong").write_text("not the password\n")
    for name in ("right", "wrong"):
        (folder / name).chmod(0o600)

    def sasl(name: str) -> dict:
        return {"mechanism": MECHANISM, "username": USER, "password_file": str(folder / name)}

    def at(listener: str) -> dict:
        return {"brokers": [f"127.0.0.1:{run.broker.ports[listener]}"]}

    run.broker.create("secure", 3)
    traces = produce(run, "secure")
    one = run.instance(
        "secure-right", "secure", kafka=at("SASL_SSL"), tables={"tls": ca, "sasl": sasl("right")}
    )
    one.start()
    run.settle("secure", [one], "TLS and SCRAM", traces)
    leaked = [f"the log has the password: {one.log()}"] if run.broker.password in one.log() else []
    run.check("the password is not in the log", leaked)
    one.stop()

    run.broker.create("secure-mtls", 3)
    traces = produce(run, "secure-mtls")
    own = ca | {"cert_file": str(folder / "client.crt"), "key_file": str(folder / "client.key")}
    one = run.instance("secure-mtls", "secure-mtls", kafka=at("MTLS"), tables={"tls": own}).start()
    run.settle("secure-mtls", [one], "TLS with certificates of clients", traces)
    one.stop()

    run.broker.create("secure-wrong", 3)
    traces = produce(run, "secure-wrong")
    one = run.instance(
        "secure-wrong",
        "secure-wrong",
        kafka=at("SASL_SSL"),
        tables={"tls": ca, "sasl": sasl("wrong")},
    )
    one.start(until_ready=False)

    def is_told() -> bool:
        return "authentication" in one.log().lower() or "credentials" in one.log().lower()

    wait_until("the log tells of wrong credentials", is_told, 30)
    accepted = one.metrics().total("receiver_accepted_spans_total")
    run.check("nothing is read with a wrong password", [f"{accepted} spans"] if accepted else [])
    (folder / "wrong").write_text(run.broker.password + "\n")
    run.settle("secure-wrong", [one], "once the file has the right password", traces)
    one.stop()
