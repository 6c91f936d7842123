"""A real Kafka: one node that is broker and controller, with its files in the folder of a run.

It listens without encryption, with TLS and a password (SCRAM), and with TLS and certificates of
clients.
"""

import random
import secrets
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from children import Children, TroubleError, wait_until
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

USER = "tailwater"
LISTENERS = ("PLAINTEXT", "CONTROLLER", "SASL_SSL", "MTLS")
# The least session timeout that the broker grants; its own default is 6 s.
PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{CONTROLLER}
controller.listener.names=CONTROLLER
listeners={listeners}
advertised.listeners={advertised}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL,MTLS:SSL
log.dirs={folder}/kafka-data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
auto.create.topics.enable=false
# The largest record of the tests, and a request with it.
message.max.bytes=83886080
socket.request.max.bytes=104857600
ssl.keystore.type=PEM
ssl.keystore.location={folder}/broker.pem
ssl.truststore.type=PEM
ssl.truststore.location={folder}/ca.crt
listener.name.mtls.ssl.client.auth=required
listener.name.sasl_ssl.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=\\
  org.apache.kafka.common.security.scram.ScramLoginModule required;
"""


def fixed_ports(count: int) -> list[int]:
    """Free ports below those of outgoing connections: a broker comes back on the same ones."""
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def make_certificates(folder: Path) -> None:
    """A CA, a broker that it vouches for, and a client."""
    key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 90".split()

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca")
    for name in ("broker", "client"):
        files = ("-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl("req", *key, *files, "-subj", f"/CN={name}")
        (folder / f"{name}.ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        by = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "90")
        told = ("-in", f"{name}.csr", "-out", f"{name}.crt", "-extfile", f"{name}.ext")
        openssl("x509", "-req", *by, *told)
    both = (folder / "broker.key").read_text() + (folder / "broker.crt").read_text()
    (folder / "broker.pem").write_text(both)


class Broker:
    """Kafka, its administration, and its state of a group."""

    def __init__(self, libs: Path, children: Children) -> None:
        self.children, self.folder = children, children.folder
        self.ports = dict(zip(LISTENERS, fixed_ports(len(LISTENERS)), strict=True))
        self.address = f"127.0.0.1:{self.ports['PLAINTEXT']}"
        self.password = secrets.token_hex(8)
        quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
        self.java = ["java", "-Xmx512m", quiet, "-cp", f"{libs}/*"]
        make_certificates(self.folder)
        config = self.folder / "server.properties"
        named = [f"{name}://127.0.0.1:{port}" for name, port in self.ports.items()]
        advertised = ",".join(one for one in named if not one.startswith("CONTROLLER"))
        config.write_text(
            PROPERTIES.format(
                listeners=",".join(named), advertised=advertised, folder=self.folder, **self.ports
            )
        )
        scram = f"SCRAM-SHA-512=[name={USER},password={self.password}]"
        self.run(
            "kafka.tools.StorageTool",
            "format",
            "-t",
            "AAAAAAAAAAAAAAAAAAAAAQ",
            "-c",
            config,
            "--add-scram",
            scram,
        )
        self.config = config
        self.starts = 0
        self.admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
        self.start()

    def run(self, tool: str, *arguments: object) -> None:
        command = [*self.java, tool, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise TroubleError(f"{tool}: {done.stdout}{done.stderr}")

    def start(self) -> None:
        self.starts += 1
        name = f"kafka-{self.starts}"
        self.process = self.children.start(name, *self.java, "kafka.Kafka", self.config)

        def answers() -> bool:
            if self.process.poll() is not None:
                raise TroubleError(f"the broker ended\n{self.children.tail(name)}")
            try:
                return bool(self.admin.list_topics(timeout=1).brokers)
            except KafkaException:
                return False

        wait_until("the broker answers", answers, 60)

    def stop(self, how: signal.Signals) -> None:
        self.process.send_signal(how)
        self.process.wait(timeout=60)

    def create(self, topic: str, partitions: int, **settings: object) -> None:
        told = {key.replace("_", "."): str(value) for key, value in settings.items()}
        wanted = NewTopic(topic, partitions, 1, config=told)
        self.admin.create_topics([wanted])[topic].result(30)
        # Its leaders are known a moment later.
        wait_until(f"{topic} is there", lambda: len(self.ends(topic)) == partitions, 30)

    def grow(self, topic: str, partitions: int) -> None:
        self.admin.create_partitions([NewPartitions(topic, partitions)])[topic].result(30)

    def partitions(self, topic: str) -> int:
        return len(self.admin.list_topics(topic, timeout=10).topics[topic].partitions)

    def ask(self, group: str, question: str, *about: object) -> Any:
        """What a consumer that does not join the group is told; asked again while Kafka moves."""
        consumer = Consumer({"bootstrap.servers": self.address, "group.id": group, "log_level": 0})

        def answer() -> Any:
            try:
                return (getattr(consumer, question)(*about, timeout=5),)
            except KafkaException:
                return None

        (told,) = wait_until(question, answer, 30)
        consumer.close()
        return told

    def ends(self, topic: str, group: str = "nobody") -> dict[int, int]:
        """The offset after the last record of each partition."""
        return {
            p: self.ask(group, "get_watermark_offsets", TopicPartition(topic, p))[1]
            for p in range(self.partitions(topic))
        }

    def committed(self, topic: str, group: str) -> dict[int, int]:
        """The offsets that a group has committed; 0 where it has not."""
        listed = [TopicPartition(topic, p) for p in range(self.partitions(topic))]
        return {p.partition: max(0, p.offset) for p in self.ask(group, "committed", listed)}

    def lag(self, topic: str, group: str) -> int:
        """Records that the group has not committed."""
        return sum(self.ends(topic).values()) - sum(self.committed(topic, group).values())

    def records(self, topic: str) -> Iterator[Message]:
        """Everything that is in a topic now."""
        consumer = Consumer({"bootstrap.servers": self.address, "group.id": "nobody"})
        ends = self.ends(topic)
        for partition, end in ends.items():
            consumer.assign([TopicPartition(topic, partition, 0)])
            at = 0
            while at < end and (record := consumer.poll(5)) is not None:
                at = record.offset() + 1
                yield record
        consumer.close()

    def remove_before(self, topic: str, offsets: dict[int, int]) -> None:
        """What retention does: the records below these offsets are gone."""
        told = [TopicPartition(topic, p, offset) for p, offset in offsets.items()]
        for one in self.admin.delete_records(told).values():
            one.result(30)
