"""The hub's own client against a server on loopback: a commit, a repository that is there, a token that is refused."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import huggingface_hub
import pytest
from pushes import SECRET, push


class Server(ThreadingHTTPServer):
    """As much of the hub as a push asks for: ``sent`` are the files of all commits, ``asked`` the calls."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.private: dict[str, bool] = {}
        self.sent: dict[str, bytes] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, status: int, **said: Any) -> None:
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if "error" in said:
            self.send_header("X-Error-Message", said["error"])
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        name = "/".join(self.path.split("?")[0].split("/")[3:5])
        if name not in self.server.private:
            return self.answer(404, error="Repository not found")
        self.answer(200, id=name, private=self.server.private[name], siblings=[], tags=[])

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(self.path)
        if self.headers.get("Authorization") != f"Bearer {SECRET}":
            return self.answer(401, error="Invalid user token")
        if self.path == "/api/repos/create":
            asked = json.loads(raw)
            name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            if name in self.server.private:
                return self.answer(409, error="You already created this model repo", url=f"{self.server.url}/{name}")
            self.server.private[name] = bool(asked.get("private")) or asked.get("visibility") == "private"
            return self.answer(200, url=f"{self.server.url}/{name}", id=name)
        if "/preupload/" in self.path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(raw)["files"]
            ]
            return self.answer(200, files=files)
        if "/commit/" in self.path:
            for line in map(json.loads, raw.splitlines()):
                if line["key"] == "file":
                    self.server.sent[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            name = "/".join(self.path.split("/")[3:5])
            return self.answer(200, commitUrl=f"{self.server.url}/{name}/commit/{'a' * 40}", commitOid="a" * 40)
        self.answer(200, errors=[], warnings=[])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    yield server
    server.shutdown()
    server.server_close()


def test_what_a_folder_holds_arrives_in_one_commit_and_nothing_secret_with_it(trained: Any, server: Server) -> None:
    folder = trained.folder / "merged"
    assert push(folder, "someone/mine", "--private") == 0
    assert server.private == {"someone/mine": True}
    assert [path for path in server.asked if "/commit/" in path] == ["/api/models/someone/mine/commit/main"]
    assert server.sent["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    card = server.sent["README.md"].decode()
    assert card == (folder / "README.md").read_text() and "sft" in card
    for content in server.sent.values():
        assert SECRET.encode() not in content and str(trained.folder.parent).encode() not in content
    assert push(folder, "someone/mine") == 0  # the repository is there, and the same command sends again
    assert sum("/commit/" in path for path in server.asked) == 2


def test_a_token_that_is_refused_is_one_line_and_nothing_is_sent(
    trained: Any, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    capsys.readouterr()
    assert push(trained.folder / "merged", "someone/mine") == 3
    said = capsys.readouterr().err
    assert "log in by hf auth login" in said and said.count("\n") == 1 and "xxxx" not in said
    assert server.sent == {} and server.private == {}


def test_a_public_repository_stays_as_it_is_where_a_private_one_was_asked_for(
    trained: Any, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.private["someone/mine"] = False
    assert push(trained.folder / "merged", "someone/mine", "--private") == 2
    assert "someone/mine is there and public" in capsys.readouterr().err
    assert server.sent == {}
