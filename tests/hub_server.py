"""A Hub in memory, as much of it as the real huggingface_hub client needs to push models and to read them back.

Knows users by token, keeps every commit, checks the sha256 of what is uploaded, and fails on demand.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml
from launch import port_kept_free

ROUTES: list[tuple[str, re.Pattern, str]] = []
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


def route(method, pattern):
    def add(function):
        ROUTES.append((method, re.compile(pattern), function.__name__))
        return function

    return add


@dataclass
class Commit:
    message: str
    files: dict[str, str]  # path: sha256 of its content

    @property
    def oid(self):
        return hashlib.sha1(json.dumps([self.message, self.files], sort_keys=True).encode()).hexdigest()


@dataclass
class Repo:
    commits: list[Commit] = field(default_factory=lambda: [Commit("initial commit", {})])

    @property
    def messages(self):
        return [commit.message for commit in self.commits]


class Hub:
    """The server; usable as a context manager.

    Attributes:
        tokens: user names, and whether the token may write, by token.
        repos: repositories by full name.
        blobs: contents by sha256.
        requests: (method, path) of all so far.
        fault: called with method and path before each answer; returns the status to fail with, or None.
    """

    def __init__(self):
        self.tokens: dict[str, tuple[str, bool]] = {}
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], int | None] = lambda method, path: None
        self.lock = threading.Lock()
        self.connections: set[socket.socket] = set()
        self.held = contextlib.ExitStack()  # while it is away, nobody else is given its port
        self.port = int(self.held.enter_context(port_kept_free()))
        self.start()

    def start(self):
        handler = type("Handler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        """Go away, with all connections; `start` comes back on the same port."""
        self.server.shutdown()
        self.server.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        self.held.close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def files(self, repo, commit=-1):
        """Contents by path in a commit of a repository, the last by default."""
        return {path: self.blobs[sha] for path, sha in self.repos[repo].commits[commit].files.items()}

    def store(self, content):
        sha = hashlib.sha256(content).hexdigest()
        self.blobs[sha] = content
        return sha


class Refused(Exception):
    def __init__(self, status, message, **extra):
        self.status, self.body = status, {"error": message, **extra}


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self):
        self.hub.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_):
        pass

    def handle_one_request(self):
        with contextlib.suppress(OSError):
            super().handle_one_request()
            return
        self.close_connection = True

    def answer(self):
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append((self.command, path))
        try:
            status = self.hub.fault(self.command, path)
            if status is not None:
                raise Refused(status, "Internal Server Error" if status == 500 else "no")
            for method, pattern, name in ROUTES:
                match = pattern.fullmatch(path)
                if match and self.command in method.split():
                    return getattr(self, name)(**match.groupdict())
            raise Refused(404, f"no route for {self.command} {path}")
        except Refused as refusal:
            self.send(refusal.body, refusal.status, {"X-Error-Message": refusal.body["error"]})

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def send(self, body, status=200, headers=None):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def user(self, write=True):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.hub.tokens:
            said = "Invalid credentials in Authorization header" if token else "Invalid username or password."
            raise Refused(401, said)
        name, may_write = self.hub.tokens[token]
        if write and not may_write:
            raise Refused(403, "You don't have the rights to write to this repository")
        return name

    def owned(self, repo):
        if self.user() != repo.split("/")[0]:
            raise Refused(403, "This repository is another user's")
        return self.found(repo)

    def found(self, repo):
        if repo not in self.hub.repos:
            raise Refused(404, "Repository not found")
        return self.hub.repos[repo]

    @route("POST", "/api/repos/create")
    def create(self):
        asked = json.loads(self.body)
        repo = f"{asked['organization'] or self.user(write=False)}/{asked['name']}"
        if self.user(write=False) != repo.split("/")[0]:
            raise Refused(403, "You don't have the rights to create a model under this namespace")
        with self.hub.lock:
            known = repo in self.hub.repos
            if not known:
                self.user()
                self.hub.repos[repo] = Repo()
        url = f"{self.hub.url}/{repo}"
        if known:
            raise Refused(409, "You already created this model repo", url=url)
        self.send({"url": url, "name": repo})

    @route("GET", f"/api/models/{REPO}/auth-check(?P<write>/write)?")
    def auth_check(self, repo, write):
        self.owned(repo) if write else self.found(repo)
        self.send({})

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self):
        errors = []
        block = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        try:
            data = yaml.safe_load(block[1]) if block else None
            for model in data.get("model-index", []) if isinstance(data, dict) else ["no metadata"]:
                for result in model["results"]:
                    assert result["task"]["type"]
                    assert result["dataset"]["type"]
                    assert result["dataset"]["name"]
                    assert all(isinstance(metric["value"], (int, float)) for metric in result["metrics"])
        except (yaml.YAMLError, AssertionError, KeyError, TypeError) as error:
            errors.append({"message": repr(error)})
        self.send({"errors": errors, "warnings": []}, 400 if errors else 200)

    @route("POST", f"/api/models/{REPO}/preupload/(?P<revision>.+)")
    def preupload(self, repo, revision):
        self.owned(repo)
        modes = []
        for file in json.loads(self.body)["files"]:
            binary = b"\0" in base64.b64decode(file["sample"]) or file["path"].endswith((".safetensors", ".png"))
            mode = "lfs" if binary or file["size"] > 10_000_000 else "regular"
            modes.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
        self.send({"files": modes})

    @route("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
    def lfs_batch(self, repo):
        self.owned(repo)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            if wanted["oid"] not in self.hub.blobs:
                wanted["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}
            objects.append(wanted)
        self.send({"transfer": "basic", "objects": objects})

    @route("PUT", "/lfs/(?P<oid>[0-9a-f]{64})")
    def lfs_put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(422, "The content is not that of its sha256")
        self.hub.store(self.body)
        self.send({})

    @route("POST", f"/api/models/{REPO}/commit/(?P<revision>.+)")
    def commit(self, repo, revision):
        commits, message = self.owned(repo).commits, ""
        with self.hub.lock:
            files = dict(commits[-1].files)
            for entry in map(json.loads, self.body.splitlines()):
                value = entry["value"]
                if entry["key"] == "header":
                    message = value["summary"]
                elif entry["key"] == "file":
                    files[value["path"]] = self.hub.store(base64.b64decode(value["content"]))
                elif entry["key"] == "lfsFile":
                    if len(self.hub.blobs.get(value["oid"], b"")) != value["size"]:
                        raise Refused(400, f"{value['path']} was not uploaded")
                    files[value["path"]] = value["oid"]
                else:
                    raise Refused(400, f"{entry['key']} is not known here")
            commits.append(Commit(message, files))
        oid = commits[-1].oid
        self.send({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}"})

    def at(self, repo, revision):
        for commit in reversed(self.found(repo).commits):
            if revision in ("main", commit.oid):
                return commit
        raise Refused(404, "Revision not found")

    @route("GET", f"/api/models/{REPO}(/revision/(?P<revision>.+))?")
    def info(self, repo, revision):
        commit = self.at(repo, revision or "main")
        siblings = [{"rfilename": path} for path in commit.files]
        self.send({"id": repo, "modelId": repo, "sha": commit.oid, "siblings": siblings, "tags": [], "private": False})

    @route("GET HEAD", f"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def resolve(self, repo, revision, path):
        commit = self.at(repo, revision)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            return self.send({"error": "Entry not found"}, 404, {**headers, "X-Error-Code": "EntryNotFound"})
        self.send(self.hub.blobs[commit.files[path]], 200, {**headers, "ETag": f'"{commit.files[path]}"'})
