"""An S3 server on loopback: killed at each request, cut off, answering with errors."""

import gc
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from run_helpers import killed_in

from hybrid_ft.finetune.mirror.files import saved_steps
from hybrid_ft.finetune.mirror.place import Place
from hybrid_ft.finetune.runs import checkpoints

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("s3fs") is None or find_spec("moto") is None, reason="s3fs and moto[server] are not installed"
    ),
    # of botocore's and aiohttp's own
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(3000):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        request = urllib.request.Request(f"http://127.0.0.1:{port}/runs", method="PUT")
        urllib.request.urlopen(request).close()
        yield port
    finally:
        server.kill()
        server.wait()
        gc.collect()  # sockets that wait for it would be told of in another file's test


@pytest.fixture
def place(port: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing-key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    return f"s3://runs/{request.node.name}"


def apart(work: Callable[..., Any], *arguments: Any) -> int:
    """Do ``work`` in a process of its own; returns its exit status, or minus the signal that has ended it."""
    child = FORK.Process(target=work, args=arguments)
    child.start()
    child.join(600)
    assert child.exitcode is not None
    return child.exitcode


def die_at_request(number: int, log: Path | None = None) -> None:
    """SIGKILL just before request ``number``, from 0; a line in ``log`` for each."""
    from s3fs.core import S3FileSystem

    call, count = S3FileSystem._call_s3, [0]
    lines: list[str] = []

    async def counted(self: Any, method: str, *arguments: Any, **more: Any) -> Any:
        if count[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        count[0] += 1
        if log is not None:
            lines.append(method)
            log.write_text("\n".join(lines))
        return await call(self, method, *arguments, **more)

    S3FileSystem._call_s3 = counted


def a_run(make: Callable[..., Any], where: str, confirmed: Path, number: int, log: Path | None = None) -> None:
    """Three saves and a result, each waited for and then noted in ``confirmed``; goes on from what is there."""
    die_at_request(number, log)
    one = make("fresh" if (confirmed.parent / "lost").exists() else "lost", where)
    one.mirror.look()
    found = one.mirror.fetch(None)
    done = checkpoints.step_of(found) if found else 0
    if not one.folder.begun:
        one.begin(rate=1)
    one.folder.checkpoints.mkdir(exist_ok=True)
    one.mirror.begin(found)
    for step in range(done + 1, 4):
        one.save(step, content=b"w" * 3000)
        one.wait()
        confirmed.write_text(str(step))
    if not one.folder.finished:
        one.finish(3)
    one.wait()
    confirmed.write_text("4")
    os._exit(0)


def test_killed_at_each_request(run, place, tmp_path):
    """The machine is lost with its disk, and a fresh one goes on. Each fourth request: HYBRID_FT_EACH=1 tries all."""
    log = tmp_path / "requests"
    assert apart(a_run, run, f"{place}/whole", tmp_path / "confirmed", 10**9, log) == 0
    requests = len(log.read_text().splitlines())
    assert requests > 40
    wrong = []
    for number in range(0, requests, int(os.environ.get("HYBRID_FT_EACH", "4"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        confirmed, where = folder / "confirmed", f"{place}/{number}"

        def make(name: str, where: str, folder: Path = folder) -> Any:
            return run(f"{folder.name}/{name}", where)

        assert apart(a_run, make, where, confirmed, number) == -signal.SIGKILL
        was = int(confirmed.read_text()) if confirmed.exists() else 0
        before = max(saved_steps(Place(where).listing()), default=0)
        if before < min(was, 3):
            wrong.append(f"request {number}: step {was} was said to be there, and {before} is")
        if apart(a_run, make, where, confirmed, 10**9) != 0:
            wrong.append(f"request {number}: the fresh machine failed")
            continue
        there = Place(where)
        steps, finished = saved_steps(there.listing()), json.loads(there.read("run.json") or b"{}").get("finished")
        if steps != [3] or not finished or there.read("model/model.safetensors") != b"result":
            wrong.append(f"request {number}: {steps} {finished}")
        if (folder / "fresh/metrics.jsonl").read_text().count("\n") < 3:
            wrong.append(f"request {number}: metrics are missing")
    assert wrong == []


class Proxy:
    """Passes connections on to the server; while ``bad`` it cuts some after a random number of bytes and answers others
    with an error."""

    def __init__(self, port: int) -> None:
        self.chance, self.bad, self.cut, self.errors, self._to = random.Random(0), True, 0, 0, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        fate = self.chance.random() if self.bad else 1.0
        with client, suppress(OSError):
            if fate < 0.2:
                self.errors += 1
                client.recv(65536)
                client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            left = [self.chance.randrange(1, 6000)] if fate < 0.7 else [10**12]
            self.cut += fate < 0.7
            with socket.create_connection(("127.0.0.1", self._to)) as server:
                back = threading.Thread(target=self._pump, args=(server, client, left), daemon=True)
                back.start()
                self._pump(client, server, left)
                back.join()

    def _pump(self, one: socket.socket, other: socket.socket, left: list[int]) -> None:
        with suppress(OSError):
            while data := one.recv(min(65536, max(left[0], 1))):
                left[0] -= len(data)
                other.sendall(data)
                if left[0] <= 0:
                    break
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def proxy(port: int) -> Iterator[Proxy]:
    proxy = Proxy(port)
    yield proxy
    proxy.close()


def test_cut_connections_and_errors_end_nothing(run, place, port, proxy, monkeypatch):
    mine = run("run", place)
    mine.begin()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    shaky = run("shaky", f"{place}-shaky")
    proxy.bad = False
    shaky.begin()
    proxy.bad = True
    shaky.mirror.begin(None)
    for step in range(1, 6):
        shaky.save(step, content=random.Random(step).randbytes(20_000))
        time.sleep(0.2)
    shaky.finish(5)
    copying = shaky.mirror._copying
    copying.tell()
    copying.wait(30, 30)
    assert proxy.cut + proxy.errors > 5
    proxy.bad = False
    copying.tell()
    assert copying.wait(300, 300)
    other = run("other", f"{place}-shaky")
    other.mirror.look()
    assert other.mirror.fetch(None).name == "checkpoint-5" and other.folder.finished


def test_a_server_that_is_gone_does_not_hold_the_training_and_is_waited_for_no_longer_than_told(
    run, place, proxy, monkeypatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    proxy.bad = False
    mine = run("run", place)
    mine.begin()
    mine.mirror.begin(None)
    mine.save(1)
    mine.wait()
    proxy.close()
    proxy.bad = True
    proxy.chance = random.Random(1)
    monkeypatch.setattr(proxy, "_to", 1)
    began = time.monotonic()
    for step in (2, 3, 4):
        mine.save(step)
    assert time.monotonic() - began < 60
    with monkeypatch.context() as patched:
        patched.setattr("hybrid_ft.finetune.mirror.mirror.STOP_SECONDS", 3.0)
        with pytest.raises(KeyboardInterrupt), mine.mirror.running():
            raise KeyboardInterrupt
    assert time.monotonic() - began < 300
    assert mine.said[-1].startswith(f"the mirror {place} has step 1 and lacks step 4")


def test_a_bucket_that_is_not_there_and_a_key_that_may_not(run, place):
    one = run("run", "s3://no-such-bucket/x")
    from hybrid_ft.errors import InputError

    with pytest.raises(InputError, match=r"mirror: s3://no-such-bucket/x cannot be written \(FileNotFoundError"):
        one.mirror.look()
        one.mirror.claim()


def test_a_fresh_machine_ends_bit_for_bit(start, place, monkeypatch):
    from hybrid_ft.finetune.training.sft.trainer import PackedSFTTrainer

    whole = start("whole")
    with killed_in(monkeypatch, PackedSFTTrainer, 4):
        start("lost", mirror=place)
    again = start("fresh", mirror=place)
    assert f"fetched checkpoint-4 from {place}" in again.screen
    assert again.metrics() == whole.metrics()
    for name in ("model/model.safetensors", "checkpoints/checkpoint-6/optimizer-00001.safetensors"):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert Place(place).read("model/model.safetensors") == (whole.folder / "model/model.safetensors").read_bytes()
