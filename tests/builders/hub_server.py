"""A small Hugging Face Hub on this machine, for tests and for trying the project by hand without the network.

    python tests/builders/hub_server.py --port 8123 --directory /tmp/hub

prints the environment variables that send every Hugging Face library to it. Files that are pushed lie in the folder as
they are and are served again after a restart. `--failure` makes every push fail in one of the ways of `FAILURES`.

It knows models only and one branch, `main`; it reads the requests of the real client and answers with the headers and
error codes of the real Hub. It listens on 127.0.0.1 and is no server for anything but tests.
"""

import argparse
import base64
import hashlib
import json
import re
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit

from hub_storage import Repositories, card_errors, is_lfs, object_id

TOKEN = "hf_token_of_the_test_hub"
USER = "someone"
FAILURES = {
    "forbidden": "the token may read but not write: 403 at once",
    "cut": "the connection breaks in the middle of every upload; the client tries a file six times, in about 23 s",
    "error": "the files arrive, the commit is answered with 500; the client gives up at once",
}


class FakeHub(Repositories):
    """The server in a thread: `with FakeHub() as hub: subprocess.run(..., env={**os.environ, **hub.environment()})`.

    The client reads its environment when it is imported, so it must run in another process than the test.

    Attributes:
        url: Address, without a slash at the end.
        failures: Way to fail (a key of `FAILURES`) by repository id, or under "*" for all; may be changed at any time.
        requests: Method and path of every request, in order.
    """

    def __init__(self, port: int = 0, directory: str | Path | None = None, failure: str | None = None) -> None:
        self.failures: dict[str, str] = {"*": failure} if failure else {}
        self.requests: list[str] = []
        super().__init__(directory)
        self._home = tempfile.TemporaryDirectory(prefix="hf_home_")
        self._server = ThreadingHTTPServer(("127.0.0.1", port), type("BoundHandler", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._home.cleanup()

    def environment(self, home: str | Path | None = None) -> dict[str, str]:
        """Variables that send a new process to this server, with caches of its own. A new `home` is an empty cache."""
        home = str(home or self._home.name)
        switches = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DISABLE_SAFETENSORS_CONVERSION": "1"}
        online = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        caches = {"HF_HOME": home, "HF_HUB_CACHE": f"{home}/hub", "HF_DATASETS_CACHE": f"{home}/datasets"}
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, **caches, **switches, **online}

    def failure_of(self, repo_id: str) -> str | None:
        return self.failures.get(repo_id, self.failures.get("*"))


class Handler(BaseHTTPRequestHandler):
    """One request. A path is matched against `ROUTES`; groups of the pattern are the arguments of the method."""

    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def chunks(self) -> Iterator[bytes]:
        """The body in pieces, sent with a length or chunked."""
        left = int(self.headers.get("Content-Length") or 0)
        while left > 0:
            piece = self.rfile.read(min(left, 2**16))
            left -= len(piece) or left
            yield piece
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

    def body(self) -> bytes:
        return b"".join(self.chunks())

    def reply(self, status: int, body: bytes | dict | list = b"", headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, message: str, code: str = "") -> None:
        self.reply(
            status, {"error": message}, {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        )

    def cut(self) -> None:
        """Take the first part of the body, then break the connection without an answer."""
        next(self.chunks(), b"")
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def dispatch(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        for methods, pattern, action in ROUTES:
            if self.command in methods and (found := re.fullmatch(pattern, path)):
                if "POST" in methods and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    self.body()
                    return self.refuse(401, "Invalid credentials in Authorization header")
                return action(self, *found.groups())
        self.body()
        return self.refuse(404, f"The test Hub has no {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = dispatch

    def find(self, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit id and files at a revision, or None after having answered that there is none."""
        repo = self.hub.repos.get(repo_id)
        sha = repo and (repo.head if revision == "main" else revision)
        if repo is None:
            self.refuse(404, "Repository not found", "RepoNotFound")
        elif sha not in repo.commits:
            self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        else:
            return sha, repo.commits[sha]
        return None

    def who_am_i(self) -> None:
        self.reply(200, {"type": "user", "name": USER, "orgs": []})

    def create(self) -> None:
        asked = json.loads(self.body())
        repo_id = f"{asked.get('organization') or USER}/{asked['name']}"
        if self.hub.failure_of(repo_id) == "forbidden":
            return self.refuse(403, "You don't have the rights to create a model under this namespace")
        status = 409 if repo_id in self.hub.repos else 200
        self.hub.create_repo(repo_id)
        return self.reply(status, {"url": f"{self.hub.url}/{repo_id}", "name": repo_id})

    def validate_yaml(self) -> None:
        errors = card_errors(json.loads(self.body())["content"])
        self.reply(400 if errors else 200, {"errors": [{"message": text} for text in errors], "warnings": []})

    def preupload(self, repo_id: str, revision: str) -> None:
        asked = json.loads(self.body())["files"]
        if self.hub.failure_of(repo_id) == "forbidden":
            return self.refuse(403, "You don't have the rights to write to this repository")
        if (found := self.find(repo_id, revision)) is None:
            return None
        answers = []
        for file in asked:
            lfs = is_lfs(file["path"], base64.b64decode(file["sample"]), file["size"])
            old = found[1].get(file["path"])
            known = {} if old is None else {"oid": object_id(file["path"], old)}
            mode = "lfs" if lfs else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        return self.reply(200, {"files": answers})

    def lfs_batch(self, repo_id: str) -> None:
        answers = []
        for asked in json.loads(self.body())["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{repo_id}/{asked['oid']}"}}
            answers.append({**asked, **({} if asked["oid"] in self.hub.objects else {"actions": upload})})
        self.reply(200, {"transfer": "basic", "objects": answers})

    def upload(self, repo_id: str, oid: str) -> None:
        if self.hub.failure_of(repo_id) == "cut":
            return self.cut()
        content = self.body()
        if hashlib.sha256(content).hexdigest() != oid:
            return self.refuse(400, "The object is not what its id says")
        self.hub.objects[oid] = content
        return self.reply(200)

    def commit(self, repo_id: str, revision: str) -> None:
        if self.hub.failure_of(repo_id) == "cut":
            return self.cut()
        lines = [json.loads(line) for line in self.body().splitlines()]
        if self.hub.failure_of(repo_id) == "error":
            return self.refuse(500, "Internal Error")
        if self.find(repo_id, revision) is None:
            return None
        sha = self.hub.commit(repo_id, lines)
        return self.reply(200, {"commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}", "commitOid": sha})

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        if (found := self.find(repo_id, revision)) is None:
            return None
        sha, files = found
        if path not in files:
            return self.refuse(404, "Entry not found", "EntryNotFound")
        oid, size = object_id(path, files[path]), str(len(files[path]))
        linked = {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": size}
        return self.reply(200, files[path], {"X-Repo-Commit": sha, "ETag": f'"{oid}"', **linked})

    def info(self, repo_id: str, revision: str | None) -> None:
        if (found := self.find(repo_id, revision or "main")) is not None:
            siblings = [{"rfilename": path} for path in found[1]]
            base = {"_id": repo_id, "id": repo_id, "modelId": repo_id, "private": False, "tags": []}
            self.reply(200, {**base, "sha": found[0], "siblings": siblings})

    def tree(self, repo_id: str, revision: str, folder: str | None) -> None:
        if (found := self.find(repo_id, revision)) is None:
            return None
        prefix = f"{folder.strip('/')}/" if folder else ""
        files = {path: content for path, content in found[1].items() if path.startswith(prefix)}
        if folder and not files:
            return self.refuse(404, f"{folder} does not exist", "EntryNotFound")
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
        deep = {prefix + path[len(prefix) :].split("/")[0] for path in files if "/" in path[len(prefix) :]}
        folders = [{"type": "directory", "path": path, "oid": "", "size": 0} for path in sorted(deep)]
        here = {path: files[path] for path in files if recursive or "/" not in path[len(prefix) :]}
        return self.reply(200, ([] if recursive else folders) + [tree_entry(*item) for item in here.items()])


def tree_entry(path: str, content: bytes) -> dict:
    oid, size = object_id(path, content), len(content)
    lfs = {"lfs": {"oid": oid, "size": size, "pointerSize": 134}} if is_lfs(path, content, size) else {}
    return {"type": "file", "path": path, "oid": oid, "size": size, **lfs}


ID = r"([\w.-]+(?:/[\w.-]+)?)"
ROUTES: list[tuple[tuple[str, ...], str, Callable[..., None]]] = [
    (("GET",), "/api/whoami-v2", Handler.who_am_i),
    (("POST",), "/api/repos/create", Handler.create),
    (("POST",), "/api/validate-yaml", Handler.validate_yaml),
    (("POST",), f"/api/models/{ID}/preupload/(.+)", Handler.preupload),
    (("POST",), f"/{ID}.git/info/lfs/objects/batch", Handler.lfs_batch),
    (("PUT",), f"/lfs/{ID}/([0-9a-f]+)", Handler.upload),
    (("POST",), f"/api/models/{ID}/commit/(.+)", Handler.commit),
    (("GET", "HEAD"), f"/{ID}/resolve/([^/]+)/(.+)", Handler.resolve),
    (("GET",), f"/api/models/{ID}(?:/revision/([^/]+))?", Handler.info),
    (("GET",), f"/api/models/{ID}/tree/([^/]+)(/.+)?", Handler.tree),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--directory", help="folder in which the pushed files are kept; by default they are not kept")
    ways = "; ".join(f"{name}: {meaning}" for name, meaning in FAILURES.items())
    parser.add_argument("--failure", choices=FAILURES, help=f"how every push fails. {ways}")
    args = parser.parse_args()
    with FakeHub(args.port, args.directory, args.failure) as hub:
        print("\n".join(f"export {name}={value}" for name, value in hub.environment().items()), flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("stopped")


if __name__ == "__main__":
    main()
