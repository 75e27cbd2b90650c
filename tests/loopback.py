"""A Hugging Face Hub on this machine, as much of it as the real client needs to read a model repository.

Run as a program with a folder of repositories (`<folder>/<owner>/<name>/…`), it prints its address and serves until its
standard input closes. `huggingface_hub` reads its address at import, so what is tested runs in a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = 1000
"""Files from this size on are given by way of the 'CDN', as large files on the Hub are."""


class Hub(ThreadingHTTPServer):
    """Serves repositories from memory: owner/name → path → bytes. Writes down every request."""

    def __init__(self, repos: dict[str, dict[str, bytes]]) -> None:
        self.repos = repos
        self.requests: list[tuple[str, str]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repo: str) -> str:
        digest = hashlib.sha1(repo.encode(), usedforsecurity=False)
        for path, data in sorted(self.repos[repo].items()):
            digest.update(path.encode() + data)
        return digest.hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.serve()

    def do_HEAD(self) -> None:
        self.serve()

    def serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        pieces = path.strip("/").split("/")
        if pieces[:2] == ["api", "models"] and len(pieces) >= 4:
            self.api("/".join(pieces[2:4]), pieces[4:])
        elif pieces[0] == "cdn":
            self.give(self.server.repos["/".join(pieces[1:3])]["/".join(pieces[3:])], {})
        elif len(pieces) >= 5 and pieces[2] == "resolve":
            self.resolve("/".join(pieces[:2]), pieces[3], "/".join(pieces[4:]))
        else:
            self.fail("RepoNotFound", path)

    def api(self, repo: str, rest: list[str]) -> None:
        if repo not in self.server.repos:
            return self.fail("RepoNotFound", f"no repository {repo}")
        files, commit = self.server.repos[repo], self.server.commit(repo)
        if len(rest) > 1 and rest[1] not in {"main", commit}:
            return self.fail("RevisionNotFound", f"no revision {rest[1]}")
        if rest[:1] == ["tree"]:
            return self.give_json(
                [{"type": "file", "path": p, "size": len(d), "oid": oid(d), **lfs(d)} for p, d in files.items()]
            )
        siblings = [{"rfilename": path} for path in files]
        return self.give_json({"id": repo, "sha": commit, "private": False, "siblings": siblings, "tags": []})

    def resolve(self, repo: str, revision: str, path: str) -> None:
        if repo not in self.server.repos:
            return self.fail("RepoNotFound", f"no repository {repo}")
        commit = self.server.commit(repo)
        if revision not in {"main", commit}:
            return self.fail("RevisionNotFound", f"no revision {revision}")
        data = self.server.repos[repo].get(path)
        if data is None:
            return self.fail("EntryNotFound", f"no file {path}", {"X-Repo-Commit": commit})
        if len(data) < LARGE:
            return self.give(data, {"X-Repo-Commit": commit, "ETag": f'"{oid(data)}"'})
        sha256 = hashlib.sha256(data).hexdigest()
        found = f"http://localhost:{self.server.server_port}/cdn/{repo}/{path}"
        linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
        return self.reply(302, b"", {"Location": found, "X-Repo-Commit": commit, **linked})

    def give(self, data: bytes, headers: dict[str, str]) -> None:
        headers = {"Accept-Ranges": "bytes", **headers}
        wanted = self.headers.get("Range")
        if wanted is None:
            return self.reply(200, data, headers)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last) + 1 if last else len(data), len(data))
        return self.reply(206, data[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})

    def give_json(self, value: object) -> None:
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def fail(self, code: str, text: str, headers: dict[str, str] | None = None) -> None:
        self.reply(
            404,
            json.dumps({"error": text}).encode(),
            {"X-Error-Code": code, "X-Error-Message": text, **(headers or {})},
        )

    def reply(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def oid(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()


def lfs(data: bytes) -> dict[str, object]:
    if len(data) < LARGE:
        return {}
    return {"lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}}


def read_repos(folder: Path) -> dict[str, dict[str, bytes]]:
    return {
        root.relative_to(folder).as_posix(): {
            p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
        }
        for root in folder.glob("*/*")
    }


@contextmanager
def serving(repos: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    """Serve from a thread of this process."""
    hub = Hub(repos)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


if __name__ == "__main__":
    with serving(read_repos(Path(sys.argv[1]))) as running:
        print(running.url, flush=True)
        sys.stdin.read()
