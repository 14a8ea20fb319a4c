"""An S3 server on the loopback, in a process of its own, that counts the requests it answers.

It is moto's, behind gunicorn: it keeps objects in memory and answers some hundred requests a
second. Its CPU seconds stand beside the driver's, because on one machine they share the cores.
"""

import json
import multiprocessing
import socket
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from factory import stops

KEYS = {"access_key": "a-key", "secret_key": "a-secret"}
BUCKET, COUNTS = "faces", "/counted-requests"
THREADS = 64  # connections that are answered at a time


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
    from gunicorn.app.base import BaseApplication
    from moto.server import create_backend_app

    seen: Counter[str] = Counter()
    behind = create_backend_app("s3")

    def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] != COUNTS:
            seen[environ["REQUEST_METHOD"]] += 1
            return behind(environ, start)
        start("200 OK", [("Content-Type", "application/json")])
        facts = {"requests": sum(seen.values()), "cpu_seconds": time.process_time(), **seen}
        return [json.dumps(facts).encode()]

    class Server(BaseApplication):
        def load_config(self) -> None:
            for name, value in settings.items():
                self.cfg.set(name, value)

        def load(self) -> Any:
            return answer

    listening = socket.create_server(("127.0.0.1", 0))
    told.send(listening.getsockname()[1])
    settings = {
        "bind": f"fd://{listening.detach()}",
        "worker_class": "gthread",  # one process, whose connections stay open, as with S3
        "threads": THREADS,
        "keepalive": 75,
        "timeout": 0,
        "loglevel": "critical",
    }
    Server().run()
