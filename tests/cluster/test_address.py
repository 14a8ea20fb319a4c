"""`--address`: what is none, and where nobody lets anybody in, is one line."""

import socket

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


def test_one_that_lets_nobody_in_names_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray raises of a cluster with tokens; tried against a real head by hand."""

    def refused(**_: object) -> None:
        raise ConnectionError("Failed to connect to Ray cluster at 127.0.0.1:1")

    monkeypatch.setattr(connecting.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connecting.ray, "init", refused)
    monkeypatch.setattr(connecting, "_answers", lambda address: None)
    with pytest.raises(InputError, match="RAY_AUTH_MODE=token and its RAY_AUTH_TOKEN"):
        connect("127.0.0.1:1")
