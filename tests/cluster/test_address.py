"""`--address`: what is none, and where nobody lets anybody in, is one line."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest

from factory.cluster import connect as connecting
from factory.cluster.connect import connect
from factory.recipe import InputError


@pytest.mark.parametrize(
    "address", ["nonsense://x", "host", "host:port", "s3://b/x", "host:6379/x"]
)
def test_what_is_no_address_is_said_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting.ray, "is_initialized", lambda: False)
    with pytest.raises(InputError, match=r"accepted is HOST:PORT of a Ray head"):
        connect(address)


def test_a_port_where_nobody_listens_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting.ray, "is_initialized", lambda: False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(InputError, match=f"127.0.0.1:{port}': no Ray cluster answers there"):
        connect(f"127.0.0.1:{port}")


def test_what_answers_but_is_no_ray_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting.ray, "is_initialized", lambda: False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = f"127.0.0.1:{server.server_port}"
        with pytest.raises(InputError, match=f"'{where}': what answers there is no Ray cluster"):
            connect(where)
        server.shutdown()


class Guarded(grpc.GenericRpcHandler):
    """A server that says what a Ray head with tokens says to one without."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        assert handler_call_details.method == connecting.ASKED

        def refuse(request: bytes, context: grpc.ServicerContext) -> None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")

        return grpc.unary_unary_rpc_method_handler(refuse)


def test_one_that_lets_nobody_in_names_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real head said so, too, by hand; with a token, Ray itself is asked."""
    monkeypatch.setattr(connecting.ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    server = grpc.server(ThreadPoolExecutor(1), [Guarded()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(InputError, match=r"refuses us; .* RAY_AUTH_MODE=token and its RAY_AUTH"):
        connect(f"127.0.0.1:{port}")
    asked: list[object] = []

    def init(**given: object) -> None:
        asked.append(given["address"])
        raise ConnectionError("the wrong token")

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setattr(connecting.ray, "init", init)
    with pytest.raises(
        InputError, match=r"no Ray cluster answers there \(the wrong token\); a clu"
    ):
        connect(f"127.0.0.1:{port}")
    assert asked == [f"127.0.0.1:{port}"]
    server.stop(None)


@pytest.mark.ray
def test_a_ray_that_lets_us_in_is_let_through(ray_cluster: str) -> None:
    connecting._answers(ray_cluster)
