"""A stand-in of the Hugging Face hub: the part of its API that `huggingface_hub` uses to upload and download."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_write"
LARGE = 4096
"""Files of at least this size are stored by their checksum, as Git LFS does."""


@dataclass
class Repo:
    """One repository: branches and tags name commits, a commit is a mapping of paths to contents."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        return (sha, self.commits[sha]) if sha in self.commits else None


class Hub(ThreadingHTTPServer):
    """Serves; tests look at `repos` and `sent`, and break uploads off with `refuse_after`.

    Attributes:
        licences: those that a card may name; None takes every one.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.sent: list[str] = []
        self.refuse_after: int | None = None
        self.licences: set[str] | None = None
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving():
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.route("GET")

    def do_HEAD(self):
        self.route("HEAD")

    def do_POST(self):
        self.route("POST")

    def do_PUT(self):
        self.route("PUT")

    def do_DELETE(self):
        self.route("DELETE")

    def route(self, method):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        for verb, pattern, name in _ROUTES:
            match = re.fullmatch(pattern, path)
            if verb == method and match:
                with self.server.lock:
                    getattr(self, name)(body, **match.groupdict())
                return
        self.answer(404, {"error": f"no route {method} {path}"})

    def answer(self, status, content=None, headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        if not isinstance(content, bytes):
            self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def may_write(self):
        authorised = self.headers.get("Authorization")
        if authorised == f"Bearer {TOKEN}":
            return True
        known = authorised == "Bearer hf_read"
        self.answer(403 if known else 401, {"error": "You don't have the rights" if known else "Invalid credentials"})
        return False

    def repo(self, kind, name):
        repo = self.server.repos.get((kind, name))
        if repo is None or (repo.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        return repo

    def create(self, body):
        if not self.may_write():
            return
        asked = json.loads(body)
        name, kind = f"{asked['organization']}/{asked['name']}", asked.get("type") or "model"
        private = asked.get("private", asked.get("visibility") == "private")
        if (kind, name) in self.server.repos:
            self.answer(409, {"error": "You already created this repo", "url": f"{self.server.url}/{name}"})
            return
        self.server.repos[kind, name] = repo = Repo(bool(private))
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.answer(200, {"url": f"{self.server.url}/{'datasets/' if kind == 'dataset' else ''}{name}"})

    def validate(self, body):
        card = yaml.safe_load(json.loads(body)["content"].split("---")[1])
        if self.server.licences is not None and card["license"] not in self.server.licences:
            errors = [{"message": f'"license" must be one of [{", ".join(sorted(self.server.licences))}]'}]
            self.answer(400, {"error": "Invalid metadata in README.md", "errors": errors, "warnings": []})
            return
        self.answer(200, {"errors": [], "warnings": []})

    def info(self, body, kind, name, revision=None):
        if repo := self.repo(kind, name):
            found = repo.at(revision or "main")
            if found is None:
                self.answer(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
                return
            sha, files = found
            siblings = [{"rfilename": path} for path in files]
            self.answer(200, {"id": name, "private": repo.private, "sha": sha, "siblings": siblings, "tags": []})

    def tree(self, body, kind, name, revision):
        if repo := self.repo(kind, name):
            _, files = repo.at(revision)
            rows = [
                {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
                for path, content in files.items()
            ]
            self.answer(200, rows)

    def refs(self, body, kind, name):
        if repo := self.repo(kind, name):
            rows = {
                what: [{"name": key, "ref": f"refs/{what}/{key}", "targetCommit": sha} for key, sha in table.items()]
                for what, table in (("branches", repo.branches), ("tags", repo.tags))
            }
            self.answer(200, {**rows, "converts": []})

    def branch(self, body, kind, name, branch):
        if self.may_write() and (repo := self.repo(kind, name)):
            if branch in repo.branches:
                self.answer(409, {"error": "Reference already exists"})
                return
            repo.branches[branch] = repo.branches["main"]
            self.answer(200, {})

    def tag(self, body, kind, name, revision):
        if self.may_write() and (repo := self.repo(kind, name)):
            tag = json.loads(body)["tag"]
            if tag in repo.tags:
                self.answer(409, {"error": "Tag exists"})
                return
            repo.tags[tag] = repo.at(revision)[0]
            self.answer(200, {})

    def untag(self, body, kind, name, tag):
        if self.may_write() and (repo := self.repo(kind, name)):
            del repo.tags[tag]
            self.answer(200, {})

    def preupload(self, body, kind, name, revision):
        if self.may_write() and (repo := self.repo(kind, name)):
            _, files = repo.at(revision)
            rows = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["size"] >= LARGE else "regular",
                    "shouldIgnore": False,
                    "oid": self.oid_of(files.get(each["path"])),
                }
                for each in json.loads(body)["files"]
            ]
            self.answer(200, {"files": rows})

    def oid_of(self, content):
        if content is None:
            return None
        return hashlib.sha256(content).hexdigest() if len(content) >= LARGE else git_oid(content)

    def batch(self, body, name, kind=None):
        if self.may_write():
            objects = []
            for each in json.loads(body)["objects"]:
                upload = {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}", "header": {}}}
                known = {} if each["oid"] in self.server.blobs else {"actions": upload}
                objects.append({"oid": each["oid"], "size": each["size"], **known})
            answer = {"transfer": "basic", "objects": objects}
            self.answer(200, answer, {"Content-Type": "application/vnd.git-lfs+json"})

    def put(self, body, oid):
        if self.server.refuse_after is not None and len(self.server.sent) >= self.server.refuse_after:
            self.answer(403, {"error": "the line went dead"})
            return
        self.server.sent.append(oid)
        self.server.blobs[oid] = body
        self.answer(200, {})

    def commit(self, body, kind, name, revision):
        if self.may_write() and (repo := self.repo(kind, name)):
            files = dict(repo.at(revision)[1])
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.server.blobs[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            sha = repo.commit(revision, files)
            url = f"{self.server.url}/{name}/commit/{sha}"
            self.answer(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def resolve(self, body, name, revision, path, kind=None):
        if repo := self.repo("dataset" if kind else "model", name):
            sha, files = repo.at(revision)
            content = files[path]
            headers = {"X-Repo-Commit": sha, "ETag": f'"{self.oid_of(content)}"', "X-Linked-Size": str(len(content))}
            self.answer(200, content, headers)


_REPO = r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)"
_FILES = r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)"
_ROUTES = (
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate"),
    ("GET", _REPO, "info"),
    ("GET", _REPO + "/revision/(?P<revision>.+)", "info"),
    ("GET", _REPO + "/tree/(?P<revision>[^/]+)/?", "tree"),
    ("GET", _REPO + "/refs", "refs"),
    ("POST", _REPO + "/branch/(?P<branch>.+)", "branch"),
    ("POST", _REPO + "/tag/(?P<revision>.+)", "tag"),
    ("DELETE", _REPO + "/tag/(?P<tag>.+)", "untag"),
    ("POST", _REPO + "/preupload/(?P<revision>.+)", "preupload"),
    ("POST", _REPO + "/commit/(?P<revision>.+)", "commit"),
    ("POST", _FILES + r"\.git/info/lfs/objects/batch", "batch"),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]+)", "put"),
    ("GET", _FILES + "/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ("HEAD", _FILES + "/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
)
