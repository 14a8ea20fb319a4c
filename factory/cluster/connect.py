"""The connection to Ray: a named cluster is joined, or a local Ray is started."""

import logging
import os
import re
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import grpc
import ray
import ray.data
from ray._private import services, worker

from factory import stops
from factory.recipe import FaultError, InputError

SHORT = ("/tmp", "/var/tmp", "/dev/shm")  # folders for Ray's sockets if TMPDIR is too long
# How many seconds a local Ray may take to start, and Ray's own setting by which a user changes it.
START_SEC, START_SETTING = 120, "RAY_raylet_start_wait_time_s"
REQUEST_SEC = "5"  # see `_patient`
ANSWER_SEC = 10.0  # for the machine at an address to answer
ASKED = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # a small question that every Ray head answers
TOKEN = (
    "a cluster that wants a token lets nobody in without RAY_AUTH_MODE=token and its RAY_AUTH_TOKEN"
)
LATE = "timed out during startup"  # part of Ray's error message
LOG_SETTING = "RAY_BACKEND_LOG_LEVEL"
UNSHOWN = (LOG_SETTING.encode(), b"gcs_client.cc")  # lines that the error itself says better
SOCKET_BYTES = 107  # longest path of a unix socket
SOCKETS = "session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # below Ray's folder


def connect(address: str) -> None:
    """Join the Ray cluster at `address`, or start a local Ray if it is empty.

    If RAY_ADDRESS is set, as Ray does in a submitted job, that cluster is joined. A Ray that
    somebody started on this machine is joined only if it is named, because Ray would wait without
    end for one that is gone.

    Raises:
        InputError: no cluster answers at the address, or TMPDIR is too long for a local Ray.
        FaultError: the local Ray did not start in time.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    seconds, begun = _start_seconds(), time.monotonic()
    joined = bool(address or os.environ.get("RAY_ADDRESS"))
    if address:
        _answers(address)
    others = stops.below()
    try:
        while not ray.is_initialized():
            try:
                with _quiet(), nullcontext() if joined else _patient(begun + seconds):
                    ray.init(
                        address=address or (None if joined else "local"),
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                        include_dashboard=None if address else False,
                        _temp_dir=None if joined else _below(),
                    )
                break
            except ConnectionError as error:
                raise InputError(
                    f"--address {address!r}: no Ray cluster answers there ({error}); {TOKEN}"
                ) from error
            except Exception as error:  # Ray has no class of its own for it
                if LATE not in str(error):
                    raise
                stops.kill(stops.below() - others)  # the rest of the Ray that did not start
                if time.monotonic() - begun >= seconds:
                    raise FaultError(
                        f"Ray did not start within {seconds} s; is the machine busy? the same "
                        f"command tries again; {START_SETTING} gives it more seconds"
                    ) from error
    finally:
        stops.install()


def started_here() -> bool:
    """Tell whether this process started its Ray; that Ray then has this process's environment."""
    node: Any = worker._global_node
    return node is not None and node.head


def _answers(address: str) -> None:
    """Raise InputError where an address is none, or no Ray that lets us in answers there.

    Ray itself would try for most of a minute, and would not tell why.
    """
    if address in ("auto", "local"):
        return
    found = re.fullmatch(r"(?:ray://)?(\[[0-9a-fA-F:]+\]|[\w.-]+):(\d{1,5})", address)
    if found is None:
        raise InputError(
            f"--address {address!r}: accepted is HOST:PORT of a Ray head, ray://HOST:PORT, or auto"
        )
    try:
        with socket.create_connection((found[1].strip("[]"), int(found[2])), ANSWER_SEC):
            pass
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--address {address!r}: no Ray cluster answers there ({error})"
        ) from error
    if os.environ.get("RAY_USE_TLS", "0") in ("", "0"):
        _speaks(address)


def _speaks(address: str) -> None:
    """Raise InputError where what listens at an address is no Ray, or wants a token.

    Ray's ports speak gRPC, a head's and also a Ray client's, which knows no such question. An
    answer that takes too long is left to Ray, since a head may be busy.
    """
    target, direct = address.removeprefix("ray://"), [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(target, options=direct) as channel:
        try:
            channel.unary_unary(ASKED)(b"", timeout=ANSWER_SEC)
        except grpc.RpcError as error:
            code, tokens = error.code(), os.environ.get("RAY_AUTH_MODE") == "token"
            if code == grpc.StatusCode.UNAVAILABLE:
                raise InputError(
                    f"--address {address!r}: what answers there is no Ray cluster; it must be the "
                    "HOST:PORT of a Ray head (6379, unless `ray start` was told another port)"
                ) from error
            if code == grpc.StatusCode.UNAUTHENTICATED and not tokens:
                raise InputError(
                    f"--address {address!r}: the cluster refuses us; {TOKEN}"
                ) from error


def _start_seconds() -> int:
    said = os.environ.get(START_SETTING) or str(START_SEC)
    if not said.isdecimal():
        raise InputError(f"{START_SETTING} {said!r}: accepted is a whole number of seconds")
    return int(said)


@contextmanager
def _patient(until: float) -> Iterator[None]:
    """Give a Ray that is started in the block more time before it counts as failed.

    Ray asks for its node for 30 s, a number that is fixed in its code. Here the question is
    repeated for longer, as long as the raylet lives. A raylet gives up after 15 s without an agent,
    which no setting changes (ray-project/ray, issue 65983); then only a new start helps. Ray's
    setting says how long one request waits. It is short here, because a request that was made too
    early gets no answer at all.

    Args:
        until: monotonic seconds.
    """
    once = services.get_node

    def get_node(*given: Any) -> Any:
        while True:
            try:
                return once(*given)
            except RuntimeError as error:
                if time.monotonic() >= until or not _raylet():
                    raise Exception(LATE) from error  # as Ray itself, which repeats others

    services.get_node = get_node
    os.putenv(START_SETTING, REQUEST_SEC)  # as in `_quiet`
    try:
        yield
    finally:
        services.get_node = once
        os.unsetenv(START_SETTING)
        if START_SETTING in os.environ:
            os.putenv(START_SETTING, os.environ[START_SETTING])


def _raylet() -> bool:
    """Tell whether a raylet that this process started is alive."""
    for process in stops.below():
        with suppress(OSError):  # the process has just ended
            if Path(f"/proc/{process}/comm").read_text() == "raylet\n":
                return True
    return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Start Ray in the block so that its core logs only fatal errors in this process.

    Ray Data hands every actor of a pool references to its transformation, and Ray's core logs each
    such actor as an error (ray-project/ray, issue 57733); smaller arguments do not help. Real
    errors also reach this process as exceptions. `os.putenv` sets what the core in this process
    reads, and leaves alone `os.environ`, which a local Ray's processes inherit. The core writes to
    stderr that it has read the setting. So stderr is held back during the block, and shown after it
    without that line.
    """
    if LOG_SETTING in os.environ:
        yield
        return
    shown = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        os.putenv(LOG_SETTING, "fatal")
        try:
            yield
        finally:
            os.unsetenv(LOG_SETTING)
            os.dup2(shown, 2)
            os.close(shown)
            held.seek(0)
            os.write(
                2, b"".join(line for line in held if not any(word in line for word in UNSHOWN))
            )


def _below() -> str | None:
    """Return the folder for a local Ray's files; None, Ray's usual one, if its sockets fit there.

    Raises:
        InputError: no folder with a short path is available.
    """
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if _fits(f"{usual}/ray"):
        return None
    for parent in SHORT:
        folder = f"{parent}/factory-{os.getuid()}"
        with suppress(OSError):
            os.makedirs(folder, 0o700, exist_ok=True)
            found = os.lstat(folder)
            own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            if own and not found.st_mode & 0o022 and os.access(folder, os.W_OK | os.X_OK):
                return f"{folder}/ray"  # which Ray opens to everybody
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    most = SOCKET_BYTES - len(f"/ray/{SOCKETS}")
    raise InputError(
        f"{name} {usual}: too long for Ray's sockets; accepted are paths of {most} bytes or fewer"
    )


def _fits(folder: str) -> bool:
    return len(os.fsencode(f"{folder}/{SOCKETS}")) <= SOCKET_BYTES
