"""A stand-in for the Hub's HTTP API on 127.0.0.1: create, upload, commit, resolve, revisions."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """Repositories in memory: commits by hash, and what branches and tags point at."""

    endpoint: str = ""
    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    refs: dict[str, dict[str, str]] = field(default_factory=dict)
    created: list[dict[str, Any]] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    refuse_commits: bool = False

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Adds ``files`` to the main branch; returns the commit's hash."""
        refs, commits = self.refs.setdefault(repo, {}), self.commits.setdefault(repo, {})
        tree = dict(commits.get(refs.get("main", ""), {})) | files
        text = json.dumps({name: hashlib.sha1(data).hexdigest() for name, data in tree.items()})
        sha = hashlib.sha1(f"{len(commits)}{text}".encode()).hexdigest()
        commits[sha] = tree
        refs["main"] = sha
        return sha

    def find(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = self.refs[repo].get(revision, revision)
        tree = self.commits[repo].get(sha)
        return None if tree is None else (sha, tree)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _send(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _missing(self, what: str) -> None:
        self._send(404, {"error": what}, {"X-Error-Code": what, "X-Error-Message": what})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.tokens.append(self.headers.get("Authorization") or "")
        body = self._body()
        for method, pattern, action in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                action(self, body, **match.groupdict())
                return
        self._missing("NoSuchRoute")

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else (
            asked["name"])  # fmt: skip
        if repo in self.hub.refs:
            self._send(409, {"error": "exists", "url": f"{self.hub.endpoint}/{repo}"})
            return
        self.hub.created.append(asked)
        self.hub.commit(repo, {})
        self._send(200, {"url": f"{self.hub.endpoint}/{repo}", "name": repo})

    def validate(self, body: bytes) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._send(200, {"files": files})

    def batch(self, body: bytes, repo: str) -> None:
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{item['oid']}"}}}
            for item in json.loads(body)["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": objects})

    def put(self, body: bytes, oid: str) -> None:
        good = hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self._send(200 if good else 400)

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        if self.hub.refuse_commits:
            self._send(403, {"error": "no write access"})
            return
        files = {}
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        sha = self.hub.commit(repo, files)
        url = f"{self.hub.endpoint}/{repo}/commit/{sha}"
        self._send(200, {"commitUrl": url, "commitOid": sha, "success": True})

    def _found(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if repo not in self.hub.refs:
            self._missing("RepoNotFound")
            return None
        found = self.hub.find(repo, revision)
        if found is None:
            self._missing("RevisionNotFound")
        return found

    def info(self, body: bytes, repo: str, revision: str) -> None:
        found = self._found(repo, revision)
        if found is not None:
            siblings = [{"rfilename": name, "size": len(data)} for name, data in found[1].items()]
            self._send(200, {"id": repo, "sha": found[0], "siblings": siblings, "tags": []})

    def tree(self, body: bytes, repo: str, revision: str) -> None:
        found = self._found(repo, revision)
        if found is not None:
            entries = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(data),
                    "oid": hashlib.sha1(data).hexdigest(),
                }
                for name, data in found[1].items()
            ]
            self._send(200, json.dumps(entries).encode())

    def resolve(self, body: bytes, repo: str, revision: str, file: str) -> None:
        found = self._found(repo, revision)
        if found is None:
            return
        sha, tree = found
        if file not in tree:
            self._missing("EntryNotFound")
            return
        data = tree[file]
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        self._send(200, data, {"ETag": etag, "X-Repo-Commit": sha})


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+?)"
_REV = r"(?P<revision>[^/]+)"
_ROUTES = [
    (("POST",), "/api/repos/create", _Handler.create),
    (("POST",), "/api/validate-yaml", _Handler.validate),
    (("POST",), f"/api/models/{_REPO}/preupload/{_REV}", _Handler.preupload),
    (("POST",), f"/api/models/{_REPO}/commit/{_REV}", _Handler.commit),
    (("GET",), f"/api/models/{_REPO}/revision/{_REV}", _Handler.info),
    (("GET",), f"/api/models/{_REPO}/tree/{_REV}", _Handler.tree),
    (("POST",), rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    (("PUT",), r"/lfs/(?P<oid>\w+)", _Handler.put),
    (("GET", "HEAD"), f"/{_REPO}/resolve/{_REV}/(?P<file>.+)", _Handler.resolve),
]


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """A running stand-in; its address is ``hub.endpoint``."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
