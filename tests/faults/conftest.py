"""What tests of faults share: a small dataset, made undisturbed, and a server that fails."""

import hashlib
import http.client
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from factory.datasets.claim import write_claim
from factory.datasets.provenance import versions
from factory.datasets.store import Store
from factory.generation.commit import Committer
from factory.generation.make import Maker
from factory.generation.work import Assignment
from factory.plan import shards
from factory.recipe import GenerateRecipe, content_digest, load

ROOT = Path(__file__).parents[2]
PLAIN = ROOT / "jobs/recipes/desk/generate/studio_plain.yaml"
HOPS = ("connection", "content-length", "expect", "transfer-encoding")  # of one connection each


@pytest.fixture
def plain() -> Callable[..., GenerateRecipe]:
    """Return a function that gives a recipe of 12 shards of 4 images, but for the overrides."""

    def recipe(*overrides: str) -> GenerateRecipe:
        small = ("identities.count=12", "identities.images_each=4", "shard.identities=1")
        made = load(PLAIN, [*small, "image.size=32", *overrides])
        assert isinstance(made, GenerateRecipe)
        return made

    return recipe


@pytest.fixture
def make_alone() -> Callable[[GenerateRecipe, Store], None]:
    """Return a function that makes every shard in this process, with no scheduler at all."""

    def make(recipe: GenerateRecipe, store: Store) -> None:
        digest = content_digest(recipe, versions())
        write_claim(store, recipe, digest, ())
        assignment = Assignment(recipe.model_dump(mode="json"), store, digest, versions())
        maker, committer = Maker(assignment), Committer(assignment)
        for shard in shards(recipe):
            committer(maker(shard))

    return make


@pytest.fixture
def tars() -> Callable[[Store], dict[str, str]]:
    """Return a function that gives the sha256 of every tar of a dataset, by name."""

    def hashed(store: Store) -> dict[str, str]:
        names = sorted(name for name in store.list("shards") if name.endswith(".tar"))
        return {name: hashlib.sha256(store.read(name)).hexdigest() for name in names}

    return hashed


@pytest.fixture
def parts() -> Callable[[Path], list[str]]:
    """Return a function that names what unfinished writers left below folders."""

    def left(*folders: Path) -> list[str]:
        return [
            name
            for folder in folders
            for _, inside, names in os.walk(folder)
            for name in (*inside, *names)
            if ".part-" in name or name.startswith("factory-")
        ]

    return left


class Front:
    """A server in front of another, which stays whole: it fails, and it dies and comes back.

    Attributes:
        fail_every: the n-th PUT is answered 503 and not passed on; 0 passes all.
        puts, failed: PUTs seen, and those answered 503.
        slow: so many requests of any kind are answered as S3 does when it is asked too much.
        slowed: how many were.
        expired: keys of credentials that have expired.
        expires: so many more PUTs are taken from a key that then expires; None: any number.
    """

    def __init__(self, behind: str) -> None:
        """Serve on a free port of the loopback what `behind` (host:port) answers."""
        self.behind, self.fail_every, self.puts, self.failed = behind, 0, 0, 0
        self.port = self.slow = self.slowed = 0
        self.expired: set[str] = set()
        self.expires: int | None = None
        self.start()

    def start(self) -> None:
        """Come (back) to life, on the port it had."""
        front = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *arguments: object) -> None:
                pass

            def body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                pieces = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    pieces.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(pieces)

            def refuse(self, status: int, code: str, words: str) -> None:
                """Answer as S3 does: the reason is in a body, which a HEAD has not."""
                said = f"<Error><Code>{code}</Code><Message>{words}</Message></Error>".encode()
                said = b"" if self.command == "HEAD" else said
                self.send_response(status)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def relay(self) -> None:
                body = self.body()
                if front.slow > 0:
                    front.slow -= 1
                    front.slowed += 1
                    self.refuse(503, "SlowDown", "Please reduce your request rate.")
                    return
                found = re.search(r"Credential=([\w-]+)/", self.headers.get("Authorization", ""))
                key = found[1] if found else ""
                if front.expires is not None and self.command == "PUT":
                    front.expires -= 1
                    if front.expires < 0:
                        front.expired.add(key)
                        front.expires = None
                if key in front.expired:
                    self.refuse(400, "ExpiredToken", "The provided token has expired.")
                    return
                if self.command == "PUT":
                    front.puts += 1
                    if front.fail_every and front.puts % front.fail_every == 0:
                        front.failed += 1
                        self.send_response(503, "Slow Down")
                        self.send_header("Content-Length", "0")
                        self.end_headers()
                        return
                inner = http.client.HTTPConnection(front.behind, timeout=60)
                headers = {k: v for k, v in self.headers.items() if k.lower() not in HOPS}
                inner.request(self.command, self.path, body, headers)
                answer = inner.getresponse()
                content = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in HOPS:
                        self.send_header(name, value)
                size = answer.headers["Content-Length"] if self.command == "HEAD" else len(content)
                self.send_header("Content-Length", str(size or 0))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = relay

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            open_sockets: set = set()  # noqa: RUF012

            def process_request(self, request, client_address) -> None:
                self.open_sockets.add(request)
                super().process_request(request, client_address)

            def handle_error(self, request, client_address) -> None:
                pass  # a client that was cut off

        self.server = Server(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def kill(self) -> None:
        """Refuse connections, and cut those that are open, in whatever they are doing."""
        self.server.shutdown()
        self.server.server_close()
        for request in self.server.open_sockets:
            with suppress(OSError):  # its client was faster
                request.shutdown(socket.SHUT_RDWR)
        self.server.open_sockets.clear()


@pytest.fixture
def front(s3: str) -> Iterator[tuple[Front, str]]:
    """A front of the S3 server, and the address of a folder behind it, `%s` its name."""
    behind = urlsplit(s3 % "x").query.partition("endpoint_override=")[2].partition("&")[0]
    made = Front(behind)
    yield made, s3.replace(behind, f"127.0.0.1:{made.port}")
    made.kill()
