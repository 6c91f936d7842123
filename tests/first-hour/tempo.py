"""In the place of Tempo: takes OTLP where its configuration says, and is asked for traces by id.

tempo.py -config.file=tempo.yaml
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "real"))

from sink import Sink  # noqa: E402

(file,) = (one.removeprefix("-config.file=") for one in sys.argv[1:])
config = yaml.safe_load(Path(file).read_text())
otlp = config["distributor"]["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
sink = Sink(int(otlp.rpartition(":")[2]))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        spans = [one for one in sink.spans() if self.path == f"/api/traces/{one['trace_id']}"]
        body = json.dumps(spans).encode()
        self.send_response(200 if spans else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


server = config["server"]
address = (server["http_listen_address"], server["http_listen_port"])
ThreadingHTTPServer(address, Handler).serve_forever()
