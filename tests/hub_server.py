"""A hub of models and datasets on this machine, behind HTTP as the hub's own client speaks to it."""

import contextlib
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server gives and was asked for: content and stated sha256 by REPO/FILE, a dataset's REPO being
    `datasets/OWNER/NAME`.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    stated: dict[str, str] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)

    def put(self, repo: str, file: str, content: bytes, stated: str | None = None) -> str:
        """Publish a file; return its sha256."""
        own = hashlib.sha256(content).hexdigest()
        self.files[f"{repo}/{file}"] = content
        self.stated[f"{repo}/{file}"] = own if stated is None else stated
        return own

    def entries(self, repo: str) -> list[dict[str, Any]]:
        """Return what the hub's API tells of all files of a repository, and of all folders."""
        names = [name.removeprefix(f"{repo}/") for name in self.files if name.startswith(f"{repo}/")]
        folders = {str(folder) for name in names for folder in PurePosixPath(name).parents} - {"."}
        told: list[dict[str, Any]] = [{"type": "directory", "path": path, "oid": "0"} for path in folders]
        for name in names:
            size, oid = len(self.files[f"{repo}/{name}"]), self.stated[f"{repo}/{name}"]
            lfs = {"oid": oid, "size": size, "pointerSize": 100}
            told.append({"type": "file", "path": name, "size": size, "oid": "0", "lfs": lfs})
        return told


@contextlib.contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve an empty hub, as HF_ENDPOINT would name it."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.wfile.write(self.answer())

        def do_POST(self) -> None:
            self.wfile.write(self.answer())

        def answer(self) -> bytes:
            path = urlsplit(self.path).path.strip("/")
            if path.startswith("api/"):
                return self.answer_api(path.removeprefix("api/"))
            repo, _, rest = path.partition("/resolve/")
            name = f"{repo}/{rest.partition('/')[2]}"
            content = hub.files.get(name)
            hub.asked[self.command] += 1
            if content is None:
                known = any(file.startswith(f"{repo}/") for file in hub.files)
                return self.send(404, b"", {"X-Error-Code": "EntryNotFound" if known else "RepoNotFound"})
            return self.send(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{hub.stated[name]}"'})

        def answer_api(self, path: str) -> bytes:
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length).decode()
            kind, owner, name, *rest = path.split("/") if path.count("/") > 1 else ("", "", path)
            repo = f"{owner}/{name}" if kind == "models" else f"{kind}/{owner}/{name}"
            entries = hub.entries(repo)
            if not entries:
                return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            match rest:
                case ["tree", _, *folder]:
                    start = "/".join([*folder, ""])
                    below = [entry for entry in entries if entry["path"].startswith(start)]
                    is_deep = (
                        parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
                    )
                    told: Any = [e for e in below if is_deep or "/" not in e["path"].removeprefix(start)]
                case ["paths-info", _]:
                    asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
                    told = [entry for entry in entries if entry["path"] in asked]
                case _:
                    told = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": [], "private": False}
            return self.send(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

        def send(self, code: int, content: bytes, headers: dict[str, str]) -> bytes:
            self.send_response(code)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            return content

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        hub.url = f"http://127.0.0.1:{http.server_port}"
        # the client read its environment when it was imported
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        try:
            yield hub
        finally:
            http.shutdown()
            thread.join()
