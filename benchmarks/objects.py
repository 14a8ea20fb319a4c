"""An S3 server on the loopback, in a process of its own, that counts the requests it answers.

It is moto's, which keeps objects in memory and answers some hundred requests a second: its CPU
seconds stand beside the driver's, because on one machine they share the cores.
"""

import json
import multiprocessing
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from factory import stops

KEYS = {"access_key": "a-key", "secret_key": "a-secret"}
BUCKET, COUNTS = "faces", "/counted-requests"


@contextmanager
def serving() -> Iterator[str]:
    """Serve while the block runs; yield the address of a folder in a bucket, `%s` its name."""
    from pyarrow import fs

    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    with stops.shielded():
        process = context.Process(target=_serve, args=(its,), daemon=True)
        process.start()
    place = f"127.0.0.1:{mine.recv()}"
    how = {"endpoint_override": place, "scheme": "http", "region": "us-east-1"}
    fs.S3FileSystem(allow_bucket_creation=True, **KEYS, **how).create_dir(BUCKET)
    query = "&".join(f"{name}={value}" for name, value in how.items())
    try:
        yield f"s3://{KEYS['access_key']}:{KEYS['secret_key']}@{BUCKET}/%s?{query}"
    finally:
        process.kill()  # it may still be shielded from SIGTERM, and keeps nothing
        process.join()


def counted(url: str) -> dict[str, float]:
    """Return requests by method, `requests` in all and `cpu_seconds` of the server at an address.

    A server that is not `serving` counts none: the answer is empty.
    """
    place = url.partition("endpoint_override=")[2].partition("&")[0]
    try:
        with urllib.request.urlopen(f"http://{place}{COUNTS}", timeout=60) as answer:
            return json.loads(answer.read())
    except (OSError, ValueError):
        return {}


def _serve(told: Any) -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    seen: Counter[str] = Counter()
    behind = DomainDispatcherApplication(create_backend_app)

    def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] != COUNTS:
            seen[environ["REQUEST_METHOD"]] += 1
            return behind(environ, start)
        start("200 OK", [("Content-Type", "application/json")])
        facts = {"requests": sum(seen.values()), "cpu_seconds": time.process_time(), **seen}
        return [json.dumps(facts).encode()]

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open, as with S3

        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    server = make_server("127.0.0.1", 0, answer, threaded=True, request_handler=Quiet)
    told.send(server.server_port)
    server.serve_forever()
