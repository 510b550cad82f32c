"""hf:// against a server that answers as the Hugging Face hub does, in its paths, JSON and headers."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from data_tools.cli import main

pytest.importorskip("huggingface_hub")

COMMIT = "c" * 40
TEXT = "".join(json.dumps({"text": f"第{i}篇文章"}, ensure_ascii=False) + "\n" for i in range(900)).encode()
FILES = {"data/第 一.jsonl": TEXT[: TEXT.index(b"\n", 5_000)], "data/2.jsonl": TEXT, "README.md": b"#", ".x": b""}


class Hub(BaseHTTPRequestHandler):
    """One data set."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path, query = unquote(urlsplit(self.path).path), urlsplit(self.path).query
        if path.startswith("/datasets/owner/name/resolve/main/"):
            data = FILES[path.split("/main/")[1]]
            start, end = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            self.answer(206, data[start : end + 1])
        elif path in ("/api/datasets/owner/name", "/api/datasets/owner/name/revision/main"):
            self.answer(200, {"id": "owner/name", "sha": COMMIT, "private": False, "tags": [], "siblings": []})
        elif path.startswith("/api/datasets/owner/name/tree/main"):
            folder = path.removeprefix("/api/datasets/owner/name/tree/main").strip("/")
            names = sorted(name for name in FILES if name.startswith(folder))
            if "recursive=true" not in query:
                names = [name for name in names if "/" not in name.removeprefix(folder).strip("/")]
            data_folder = [] if folder else [{"type": "directory", "oid": "d", "size": 0, "path": "data"}]
            self.answer(200, [*map(entry, names), *data_folder])
        else:
            self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.answer(200, [entry(name) for name in parse_qs(body)["paths"] if name in FILES])

    def answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "X-Repo-Commit": COMMIT, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def entry(name: str) -> dict[str, Any]:
    return {"type": "file", "oid": hashlib.sha1(FILES[name]).hexdigest(), "size": len(FILES[name]), "path": name}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of who asks it: the library reads it as it is imported."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    yield {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    server.shutdown()
    server.server_close()


def run(hub: dict[str, str], origin: str, output: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data_tools", "sample", "--from", origin, "--output", str(output)]
    return subprocess.run(command, env={**hub, "PYTHONPATH": os.getcwd()}, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("origin", ["", "/data/*.jsonl"])
def test_files_of_a_data_set(hub: dict[str, str], tmp_path: Path, origin: str) -> None:
    folder = tmp_path / "local"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    assert main(["sample", "--from", f"{folder}{origin}", "--output", str(tmp_path / "a")]) == 0
    done = run(hub, f"hf://datasets/owner/name{origin}", tmp_path / "b")
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("train.jsonl", "heldout.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert "done already" in run(hub, f"hf://datasets/owner/name{origin}", tmp_path / "b").stdout


def test_what_is_not_there(hub: dict[str, str], tmp_path: Path) -> None:
    for origin in ("hf://datasets/owner/other/a.jsonl", "hf://datasets/owner/name/none.jsonl"):
        done = run(hub, origin, tmp_path / "b")
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(f"data_tools: error: {origin}: not there")
        assert done.stderr.count("\n") == 1
