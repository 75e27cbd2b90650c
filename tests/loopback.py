"""A Hugging Face Hub on this machine, as much of it as the real client needs: to read and to write model repositories.

It serves its API at 127.0.0.1 and large files, as from a CDN, at localhost: to a client these are two origins. It knows
tokens, private and gated repositories, branches, tags, pull requests, LFS (basic and multipart), ranges and pages; it
writes down every request and every byte, and can be told to fail.

Run as a program with a folder of repositories (`<folder>/<owner>/<name>/…`), it prints its address and serves until its
standard input closes. `huggingface_hub` reads its address at import, so what is tested runs in a process of its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = 1000
"""Files from this size on are LFS, and given by way of the 'CDN'."""
PART = 1 << 16
"""Bytes of a part, where an upload is told to come in parts."""
Files = dict[str, bytes]


@dataclass
class Repository:
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    private: bool = False
    gated: bool = False

    def add(self, branch: str, files: Files, message: str) -> str:
        digest = hashlib.sha1(f"{len(self.commits)}{message}".encode(), usedforsecurity=False)
        for path, data in sorted(files.items()):
            digest.update(path.encode() + data)
        self.commits[digest.hexdigest()] = files
        self.branches[branch] = digest.hexdigest()
        self.messages.append(message)
        return digest.hexdigest()

    def find(self, revision: str) -> str | None:
        return (
            self.branches.get(revision) or self.tags.get(revision) or (revision if revision in self.commits else None)
        )


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    token: str | None
    start: int | None
    """First byte of the range that was asked for; None where none was."""
    sent: int
    """Bytes of the body that went out."""
    received: int
    status: int
    secret: str
    """What came to authenticate a request at a plain web server: user and password in base64, `?`, and the query."""


@dataclass
class Fault:
    """What goes wrong with answers to requests whose `METHOD path` matches."""

    pattern: str
    kind: str
    """cut, flip, status, slow, whole (the range is ignored)."""
    at: int = 0
    """Where the body is cut off or flipped; the status; milliseconds."""
    times: int = 1 << 30


class Hub(ThreadingHTTPServer):
    """Repositories in memory: owner/name → path → bytes, on main."""

    daemon_threads = True

    def __init__(self, repos: Mapping[str, Files] | None = None, tokens: Mapping[str, str] | None = None) -> None:
        self.repos = {name: Repository() for name in repos or {}}
        for name, files in (repos or {}).items():
            self.repos[name].add("main", dict(files), f"first {name}")
        self.tokens = dict(tokens or {})
        """Token → user, who may write what is theirs and see what is private."""
        self.stored: dict[str, bytes] = {}
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.multipart = False
        self.page = 1000
        self.xet = False
        """Whether large files are said to lie behind Xet, of which no more than these words is there."""
        self.before_commit: Any = None
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def cdn(self) -> str:
        return f"http://localhost:{self.server_port}"

    @property
    def requests(self) -> list[tuple[str, str]]:
        return [(request.method, request.path) for request in self.log]

    def commit(self, repo: str, branch: str = "main") -> str:
        return self.repos[repo].branches[branch]

    def files(self, repo: str, branch: str = "main") -> Files:
        return self.repos[repo].commits[self.commit(repo, branch)]

    def fail(self, pattern: str, kind: str, at: int = 0, times: int = 1 << 30) -> Fault:
        self.faults.append(Fault(pattern, kind, at, times))
        return self.faults[-1]

    def fault(self, request: str, *kinds: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.kind in kinds and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None

    def got(self, part: str = "") -> dict[str, int]:
        """Bytes of files that went out, by their path in the repository."""
        found: dict[str, int] = {}
        for request in self.log:
            path = request.path.split("/resolve/")[-1].split("/", 1)[-1] if "/resolve/" in request.path else None
            if request.path.startswith("/cdn/"):
                path = request.path.split("/", 5)[5]
            if path is not None and request.method == "GET" and request.status < 300 and part in path:
                found[path] = found.get(path, 0) + request.sent
        return found

    def handle_error(self, *_: Any) -> None:
        pass  # a client that goes away


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        split = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(split.query).items()}
        self.pieces = [unquote(piece) for piece in split.path.strip("/").split("/")]
        self.shown = "/" + "/".join(self.pieces)
        kind, _, secret = (self.headers.get("Authorization") or "").partition(" ")
        self.token = secret if kind == "Bearer" else None
        self.secret = f"{secret if kind == 'Basic' else ''}?{split.query}"
        name = f"{self.command} {self.shown}"
        if fault := self.server.fault(name, "slow"):
            time.sleep(fault.at / 1000)
        if fault := self.server.fault(name, "status"):
            return self.reply(fault.at, b'{"error":"told to"}', {})
        return self.serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - as http.server names them

    def serve(self) -> None:
        pieces = self.pieces
        if pieces[:2] == ["api", "models"] and len(pieces) >= 4:
            return self.api("/".join(pieces[2:4]), pieces[4:])
        if pieces[:3] == ["api", "repos", "create"]:
            return self.create(json.loads(self.body))
        if pieces == ["api", "validate-yaml"]:
            return self.give_json({"errors": [], "warnings": []})
        if pieces == ["api", "whoami-v2"]:
            user = self.server.tokens.get(self.token or "")
            return self.give_json({"name": user, "type": "user"}) if user else self.refuse(401, "no token")
        if pieces[0] in {"cdn", "store", "verify", "complete"}:
            return getattr(self, pieces[0])(*pieces[1:])
        if pieces[2:] == ["info", "lfs", "objects", "batch"]:
            return self.batch("/".join(pieces[:2]).removesuffix(".git"), json.loads(self.body))
        if len(pieces) >= 5 and pieces[2] == "resolve":
            return self.resolve("/".join(pieces[:2]), pieces[3], "/".join(pieces[4:]))
        return self.missing("RepoNotFound", self.shown)

    # Who may.

    def repo(self, name: str, *, write: bool = False) -> Repository | None:
        """The repository; None if the request was refused."""
        found, user = self.server.repos.get(name), self.server.tokens.get(self.token or "")
        if write and (user is None or not name.startswith(f"{user}/")) and "create_pr" not in self.query:
            self.refuse(401 if user is None else 403, "you may not write here")
        elif self.token is not None and user is None:
            self.refuse(401, "Invalid credentials in Authorization header")
        elif found is None or (found.private and not name.startswith(f"{user}/")):
            self.refuse(404 if user else 401, f"no repository {name}", "RepoNotFound")
        else:
            return found
        return None

    def at(self, name: str, revision: str, **how: bool) -> tuple[Repository, str] | None:
        repo = self.repo(name, **how)
        if repo is None:
            return None
        commit = repo.find(revision)
        if commit is None:
            self.missing("RevisionNotFound", f"no revision {revision}")
            return None
        return repo, commit

    # The API.

    def create(self, facts: dict[str, Any]) -> None:
        user = self.server.tokens.get(self.token or "")
        name = f"{facts.get('organization') or user}/{facts['name']}"
        if user is None or not name.startswith(f"{user}/"):
            return self.refuse(401 if user is None else 403, "you may not create this")
        if name in self.server.repos:
            return self.reply(
                409, json.dumps({"error": "it is there", "url": f"{self.server.url}/{name}"}).encode(), {}
            )
        private = facts.get("private") or facts.get("visibility") == "private"
        self.server.repos[name] = Repository(private=bool(private))
        self.server.repos[name].add("main", {".gitattributes": b"*.safetensors filter=lfs"}, "initial commit")
        return self.give_json({"url": f"{self.server.url}/{name}", "id": name})

    def api(self, name: str, rest: list[str]) -> None:
        what = rest[0] if rest else "revision"
        if what not in {"revision", "commit", "preupload", "branch", "refs", "tree", "paths-info"}:
            return self.refuse(404, f"no such route: {what}")
        if what in {"commit", "preupload"}:
            return getattr(self, f"api_{what}")(name, rest[1])
        if what == "branch":
            return self.api_branch(name, rest[1])
        if what == "refs":
            repo = self.repo(name)
            refs = (
                {
                    kind: [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": c} for n, c in held.items()]
                    for kind, held in (("heads", repo.branches), ("tags", repo.tags))
                }
                if repo
                else {}
            )
            return self.give_json({"branches": refs["heads"], "tags": refs["tags"], "converts": []}) if repo else None
        found = self.at(name, rest[1] if len(rest) > 1 else "main")
        if found is None:
            return None
        repo, commit = found
        files = repo.commits[commit]
        if what == "tree":
            return self.pages([described(p, d) for p, d in files.items() if p.startswith("/".join(rest[2:]))])
        if what == "paths-info":
            wanted = set(parse_qs(self.body.decode()).get("paths", []))
            return self.give_json([described(p, d) for p, d in files.items() if p in wanted])
        siblings = [{"rfilename": path} for path in files]
        facts = {"id": name, "sha": commit, "private": repo.private, "siblings": siblings, "tags": []}
        return self.give_json(facts)

    def pages(self, items: list[dict[str, Any]]) -> None:
        start = int(self.query.get("cursor", 0))
        headers = {"Content-Type": "application/json"}
        if start + self.server.page < len(items):
            base = f"{self.server.url}{urlsplit(self.path).path}?recursive=true&cursor={start + self.server.page}"
            headers["Link"] = f'<{base}>; rel="next"'
        self.reply(200, json.dumps(items[start : start + self.server.page]).encode(), headers)

    def api_branch(self, name: str, branch: str) -> None:
        repo = self.repo(name, write=True)
        if repo is not None:
            start = repo.find((json.loads(self.body or b"{}") or {}).get("startingPoint") or "main")
            if branch in repo.branches:
                return self.refuse(409, "it is there")
            repo.branches[branch] = str(start)
            self.give_json({})
        return None

    def api_preupload(self, name: str, revision: str) -> None:
        found = self.at(name, revision, write=True)
        if found is not None:
            files = found[0].commits[found[1]]
            told = []
            for each in json.loads(self.body)["files"]:
                old = files.get(each["path"])
                mode = "lfs" if each["size"] >= LARGE else "regular"
                known = old is not None and {"oid": sha256(old) if mode == "lfs" else oid(old)}
                told.append({"path": each["path"], "uploadMode": mode, "shouldIgnore": False, **(known or {})})
            self.give_json({"files": told})

    def batch(self, name: str, facts: dict[str, Any]) -> None:
        if self.repo(name, write=True) is None:
            return
        objects = []
        for each in facts["objects"]:
            actions: dict[str, Any] = {"verify": {"href": f"{self.server.url}/verify"}}
            if self.server.multipart and each["size"] > PART:
                parts = range(-(-each["size"] // PART))
                urls = {f"{n + 1:05}": f"{self.server.cdn}/store/{each['oid']}/{n}" for n in parts}
                complete = f"{self.server.url}/complete/{each['oid']}/{len(parts)}"
                actions["upload"] = {"href": complete, "header": {"chunk_size": str(PART), **urls}}
            else:
                actions["upload"] = {"href": f"{self.server.cdn}/store/{each['oid']}"}
            objects.append({**each, **({} if each["oid"] in self.server.stored else {"actions": actions})})
        self.give_json({"transfer": "multipart" if self.server.multipart else "basic", "objects": objects})

    def store(self, name: str, part: str = "") -> None:
        if self.token is not None:
            return self.refuse(400, "a token came to where none is expected")
        if not part and sha256(self.body) != name:
            return self.refuse(400, "not what was announced")
        self.server.stored[name + part] = self.body
        return self.reply(200, b"", {"ETag": f'"{sha256(self.body)}"'})

    def complete(self, name: str, count: str) -> None:
        whole = b"".join(self.server.stored.pop(f"{name}{n}") for n in range(int(count)))
        if sha256(whole) != name:
            return self.refuse(400, "not what was announced")
        self.server.stored[name] = whole
        return self.give_json({})

    def verify(self) -> None:
        facts = json.loads(self.body)
        known = self.server.stored.get(facts["oid"])
        self.reply(200 if known is not None and len(known) == facts["size"] else 404, b"{}", {})

    def api_commit(self, name: str, revision: str) -> None:
        if self.server.before_commit is not None:
            self.server.before_commit()
        found = self.at(name, revision, write=True)
        if found is None:
            return None
        repo, parent = found
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in {None, parent}:
            return self.refuse(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[parent])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
            else:
                del files[value["path"]]
        told: dict[str, Any] = {}
        if "create_pr" in self.query:
            number = 1 + sum(branch.startswith("refs/pr/") for branch in repo.branches)
            revision = f"refs/pr/{number}"
            told["pullRequestUrl"] = f"{self.server.url}/{name}/discussions/{number}"
        commit = repo.add(revision, files, header["summary"])
        return self.give_json({"commitOid": commit, "commitUrl": f"{self.server.url}/{name}/commit/{commit}", **told})

    # Files.

    def resolve(self, name: str, revision: str, path: str) -> None:
        found = self.at(name, revision)
        if found is None:
            return None
        repo, commit = found
        if repo.gated and self.server.tokens.get(self.token or "") is None:
            return self.refuse(401, "gated", "GatedRepo")
        data = repo.commits[commit].get(path)
        if data is None:
            return self.missing("EntryNotFound", f"no file {path}", {"X-Repo-Commit": commit})
        if len(data) < LARGE:
            return self.give(data, {"X-Repo-Commit": commit, "ETag": f'"{oid(data)}"'})
        linked = {"X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
        if self.server.xet:
            route = f"{self.server.url}/api/models/{name}/xet-read-token/{commit}"
            linked |= {"X-Xet-Hash": sha256(data), "X-Xet-Refresh-Route": route}
        place = f"{self.server.cdn}/cdn/{name}/{commit}/{path}"
        return self.reply(302, b"", {"Location": place, "X-Repo-Commit": commit, **linked})

    def cdn(self, owner: str, name: str, commit: str, *path: str) -> None:
        if self.token is not None:
            return self.refuse(400, "a token came to where none is expected")
        data = self.server.repos[f"{owner}/{name}"].commits.get(commit, {}).get("/".join(path))
        return self.give(data, {}) if data is not None else self.refuse(404, "no such file")

    def give(self, data: bytes, headers: dict[str, str]) -> None:
        headers = {"Accept-Ranges": "bytes", **headers}
        wanted = self.headers.get("Range")
        if wanted is None or self.server.fault(f"{self.command} {self.shown}", "whole"):
            return self.reply(200, data, headers)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last) + 1 if last else len(data), len(data))
        if start >= len(data):
            return self.reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        told = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        return self.reply(206, data[start:stop], told, start)

    def give_json(self, value: object) -> None:
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def missing(self, code: str, text: str, headers: dict[str, str] | None = None) -> None:
        self.refuse(404, text, code, headers)

    def refuse(self, status: int, text: str, code: str | None = None, headers: dict[str, str] | None = None) -> None:
        coded = {"X-Error-Code": code} if code else {}
        self.reply(status, json.dumps({"error": text}).encode(), {"X-Error-Message": text, **coded, **(headers or {})})

    def reply(self, status: int, data: bytes, headers: dict[str, str], start: int | None = None) -> None:
        name = f"{self.command} {self.shown}"
        self.send_response(status)
        for header, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(header, value)
        self.end_headers()
        if data and self.command != "HEAD" and status < 300 and (fault := self.server.fault(name, "flip")):
            at = fault.at % len(data)
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        cut = self.server.fault(name, "cut") if data and self.command != "HEAD" and status < 300 else None
        sent = b"" if self.command == "HEAD" else data[: cut.at % len(data)] if cut else data
        request = Request(self.command, self.shown, self.token, start, len(sent), len(self.body), status, self.secret)
        with self.server.lock:
            self.server.log.append(request)
        self.wfile.write(sent)
        if cut:
            self.wfile.flush()
            # No farewell: the client's end is reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

    def log_message(self, *_: object) -> None:
        pass


def oid(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def described(path: str, data: bytes) -> dict[str, Any]:
    linked = {"lfs": {"oid": sha256(data), "size": len(data), "pointerSize": 130}} if len(data) >= LARGE else {}
    return {"type": "file", "path": path, "size": len(data), "oid": oid(data), **linked}


def read_repos(folder: Path) -> dict[str, Files]:
    return {
        root.relative_to(folder).as_posix(): {
            p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
        }
        for root in folder.glob("*/*")
    }


@contextmanager
def serving(repos: Mapping[str, Files] | None = None, tokens: Mapping[str, str] | None = None) -> Iterator[Hub]:
    """Serve from a thread of this process."""
    hub = Hub(repos, tokens)
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
