"""A hub on this machine: the part of huggingface.co's HTTP interface that a push and a download use.

The real client talks to it over a socket, so its cache, its requests and its errors are those of a user.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Files = dict[str, bytes]


class Hub:
    """Repositories by name: each a list of commits, each commit all its files by path."""

    def __init__(self) -> None:
        self.commits: dict[str, list[Files]] = {}
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []
        self.tokens: list[str | None] = []
        self.downloads: list[str] = []
        self.address = ""

    def commit_of(self, repo: str, number: int) -> str:
        return hashlib.sha1(f"{repo} {number}".encode()).hexdigest()

    def create(self, name: str, private: bool) -> str:
        repo = name if "/" in name else f"somebody/{name}"
        self.commits.setdefault(repo, [{}])
        self.private.setdefault(repo, private)
        return repo

    def add(self, repo: str, files: Files) -> str:
        """A new commit; its id."""
        self.commits[repo].append({**self.commits[repo][-1], **files})
        return self.commit_of(repo, len(self.commits[repo]) - 1)

    def find(self, repo: str, revision: str) -> tuple[str, Files] | None:
        """The id and the files of a commit."""
        known = self.commits.get(repo, [])
        ids = [self.commit_of(repo, number) for number in range(len(known))]
        if known and revision == "main":
            return ids[-1], known[-1]
        return (revision, known[ids.index(revision)]) if revision in ids else None


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _json(self, value: object, status: int = 200) -> None:
            self._send(status, json.dumps(value).encode(), Content_Type="application/json")

        def do_GET(self) -> None:
            hub.tokens.append(self.headers.get("Authorization"))
            if self.path.startswith("/api/models/"):  # asked by some versions of the client before a commit
                repo = self.path.removeprefix("/api/models/").partition("/revision/")[0].partition("?")[0]
                return self._json({"id": repo, "sha": hub.commit_of(repo, len(hub.commits[repo]) - 1)})
            repo, _, rest = self.path.lstrip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            if repo not in hub.commits:
                return self._send(401, X_Error_Code="RepoNotFound")
            found = hub.find(repo, revision)
            if found is None:
                return self._send(404, X_Error_Code="RevisionNotFound")
            commit, files = found
            if name not in files:
                return self._send(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            if self.command == "GET":
                hub.downloads.append(name)
            etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
            self._send(200, files[name], ETag=etag, X_Repo_Commit=commit)

        do_HEAD = do_GET

        def do_POST(self) -> None:
            hub.tokens.append(self.headers.get("Authorization"))
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                owner = f"{asked['organization']}/" if asked.get("organization") else ""
                private = bool(asked.get("private") or asked.get("visibility") == "private")
                repo = hub.create(owner + asked["name"], private)
                return self._json({"url": f"{hub.address}/{repo}", "name": repo})
            if self.path == "/api/validate-yaml":
                return self._json({"errors": [], "warnings": []})
            repo, _, rest = self.path.removeprefix("/api/models/").partition("/preupload/")
            if rest:
                files = json.loads(body)["files"]
                return self._json({"files": [{**f, "uploadMode": "regular", "shouldIgnore": False} for f in files]})
            repo, _, rest = self.path.removeprefix("/api/models/").partition("/commit/")
            lines = [json.loads(line) for line in body.splitlines()]
            hub.messages += [line["value"]["summary"] for line in lines if line["key"] == "header"]
            files = [line["value"] for line in lines if line["key"] == "file"]
            commit = hub.add(repo, {file["path"]: base64.b64decode(file["content"]) for file in files})
            self._json({"commitUrl": f"{hub.address}/{repo}/commit/{commit}", "commitOid": commit})

    return Handler


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers at `address` until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
