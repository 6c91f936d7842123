"""TLS and tokens, checked with independent implementations.

`openssl` makes the certificates, the senders are the Python SDK (BoringSSL) and `curl`, the
backend is a gRPC server in Python that asks for a certificate, and `openssl s_client` shows what
was negotiated.
"""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service_grpc
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult

from children import Children, TroubleError
from running import Report, Tailwater
from sink import Sink

TOKEN = "a-token-of-the-shop"
CONFIG = """
[receiver.grpc]
endpoint = "127.0.0.1:${env:SHOP_GRPC_PORT}"
[receiver.http]
endpoint = "127.0.0.1:${env:SHOP_HTTP_PORT}"
[receiver.tls]
cert_file = "server.crt"
key_file = "server.key"
client_ca_file = "ca.crt"
[receiver.auth]
bearer_token_file = "token"
[telemetry]
endpoint = "127.0.0.1:${env:SHOP_TELEMETRY_PORT}"
[sampling]
decision_wait = "1s"
decision_wait_after_root_received = "100ms"
[exporter.otlp]
endpoint = "https://localhost:${env:SHOP_SINK_PORT}"
headers = { authorization = "Bearer ${env:SHOP_TOKEN:-of-the-backend}" }
[exporter.otlp.tls]
ca_file = "ca.crt"
cert_file = "client.crt"
key_file = "client.key"
[[policy]]
name = "all"
type = "always_sample"
"""


def openssl(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise TroubleError(f"openssl {arguments[0]}: {done.stderr}")


def make_certificates(folder: Path) -> None:
    """A CA (RSA), and its certificates for localhost (RSA) and a client (P-256)."""
    subject = ("-subj", "/CN=the shop's CA", "-days", "2", "-nodes")
    files = ("-keyout", "ca.key", "-out", "ca.crt")
    openssl(folder, "req", "-x509", "-newkey", "rsa:2048", *subject, *files)
    kinds = {
        "server": ("rsa:2048",),
        "client": ("ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
    }
    for name, kind in kinds.items():
        files = ("-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl(folder, "req", "-new", "-newkey", *kind, "-nodes", "-subj", f"/CN={name}", *files)
        (folder / "extensions").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        files = ("-in", f"{name}.csr", "-out", f"{name}.crt", "-extfile", "extensions")
        signing = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        openssl(folder, "x509", "-req", *signing, *files)


class SecureSink(Sink):
    """The sink behind mutual TLS; notes the token of each call."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.tokens: set[str] = set()
        pair = ((folder / "server.key").read_bytes(), (folder / "server.crt").read_bytes())
        ca = (folder / "ca.crt").read_bytes()
        credentials = grpc.ssl_server_credentials([pair], ca, require_client_auth=True)
        self.secure = grpc.server(ThreadPoolExecutor(max_workers=2))
        service_grpc.add_TraceServiceServicer_to_server(self, self.secure)
        self.port = self.secure.add_secure_port("127.0.0.1:0", credentials)
        self.secure.start()

    def Export(self, request, context):  # noqa: N802
        metadata = dict(context.invocation_metadata())
        self.tokens.add(str(metadata.get("authorization")))
        return super().Export(request, context)

    def stop(self) -> None:
        self.secure.stop(grace=None).wait(timeout=10)
        super().stop()


def python_sends(folder: Path, port: int, token: str, with_certificate: bool) -> bool:
    """Sends one span through the SDK; returns whether it was taken."""
    ca = (folder / "ca.crt").read_bytes()
    key, chain = ((folder / name).read_bytes() for name in ("client.key", "client.crt"))
    pair = (key, chain) if with_certificate else (None, None)
    exporter = OTLPSpanExporter(
        endpoint=f"https://localhost:{port}",
        credentials=grpc.ssl_channel_credentials(ca, *pair),
        headers={"authorization": f"Bearer {token}"},
        timeout=2,
    )
    results = []
    export = exporter.export
    exporter.export = lambda spans: results.append(export(spans)) or results[-1]
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.get_tracer("secure").start_span("over TLS").end()
    provider.shutdown()
    return results == [SpanExportResult.SUCCESS]


def curl(folder: Path, port: int, *arguments: str) -> str:
    """The status of an empty request over OTLP/HTTP, with the version of HTTP."""
    command = ["curl", "--silent", "--noproxy", "*", "--output", "/dev/null"]
    command += ["--write-out", "%{http_code} %{http_version}", "--cacert", "ca.crt"]
    command += ["--header", "content-type: application/x-protobuf", "--data-binary", ""]
    command += [*arguments, f"https://localhost:{port}/v1/traces"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout


def agreed(folder: Path, port: int, *arguments: str) -> str:
    """The report of openssl about a connection."""
    command = ["openssl", "s_client", "-connect", f"localhost:{port}", "-CAfile", "ca.crt"]
    command += ["-cert", "client.crt", "-key", "client.key", "-verify_return_error", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, input="Q\n", timeout=20
    )
    return done.stdout + done.stderr


def check_curl(report: Report, folder: Path, port: int) -> None:
    client = ("--cert", "client.crt", "--key", "client.key")
    bearer = ("--header", f"authorization: Bearer {TOKEN}")
    cases = {
        "200 1.1": (*client, *bearer, "--http1.1"),
        "200 2": (*client, *bearer, "--http2"),
        "401 2": (*client, "--http2"),
        "000 0": bearer,
    }
    wrong = []
    for expected, arguments in cases.items():
        got = curl(folder, port, *arguments)
        # A refused certificate may show before or after the version was negotiated.
        if got[:3] != expected[:3] or (got[:3] != "000" and got != expected):
            wrong.append(f"{got} instead of {expected}")
    report.check("curl over TLS: HTTP/1.1, HTTP/2, no token, no certificate", wrong)


def check_openssl(report: Report, folder: Path, port: int) -> None:
    cases = {
        ("-tls1_3", "-alpn", "h2"): ("TLSv1.3", "ALPN protocol: h2", "Verify return code: 0"),
        ("-tls1_2", "-alpn", "h2"): ("TLSv1.2", "ALPN protocol: h2", "Verify return code: 0"),
        ("-tls1_1",): ("alert",),
        ("-alpn", "http/1.1"): ("no application protocol",),
    }
    wrong = []
    for arguments, expected in cases.items():
        said = agreed(folder, port, *arguments)
        wrong += [f"{arguments}: no {part!r} in {said}" for part in expected if part not in said]
    report.check("openssl s_client: TLS 1.2 and 1.3, no 1.1, ALPN", wrong)


def run(report: Report, binary: Path, children: Children) -> None:
    folder = children.folder / "secure"
    folder.mkdir()
    make_certificates(folder)
    (folder / "token").write_text(TOKEN + "\n")
    (folder / "tailwater.toml").write_text(CONFIG)
    sink = SecureSink(folder)
    try:
        tailwater = Tailwater(binary, folder / "tailwater.toml", sink.port, children)
        tailwater.wait_until_ready()
        port = tailwater.grpc_port
        taken = {
            "with token and certificate": python_sends(folder, port, TOKEN, True),
            "with another token": not python_sends(folder, port, TOKEN[:-1], True),
            "without a certificate": not python_sends(folder, port, TOKEN, False),
        }
        report.check("the Python SDK over mutual TLS", [k for k, v in taken.items() if not v])
        check_openssl(report, folder, port)
        check_curl(report, folder, tailwater.http_port)
        after = tailwater.wait_until_at_rest(1)
        received = [span["name"] for span in sink.spans()]
        wrong = [] if received == ["over TLS"] else [f"arrived: {received}"]
        wrong += [] if sink.tokens == {"Bearer of-the-backend"} else [f"tokens: {sink.tokens}"]
        failed = after.total("receiver_tls_handshake_failures_total")
        wrong += [] if failed >= 4 else [f"{failed} failed handshakes counted"]
        report.check("it exports over mutual TLS with a token", wrong)
        report.check("SIGTERM ends it with exit code 0 (TLS)", tailwater.stop())
    except TroubleError as trouble:
        report.check("TLS", [str(trouble), children.tail("tailwater")])
    finally:
        sink.stop()
