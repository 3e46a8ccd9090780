"""What the small Hub of `hub_server.py` keeps: repositories, their commits and files, in memory and in a folder."""

import base64
import hashlib
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path

import yaml

LFS_SUFFIXES = {".bin", ".ckpt", ".h5", ".msgpack", ".npy", ".npz", ".onnx", ".pt", ".pth", ".safetensors", ".zip"}
LFS_SIZE = 10 * 2**20  # bytes from which the Hub stores any file as LFS
MODEL_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
FRONT_MATTER = re.compile(r"^\s*---\r?\n(.*?)\r?\n---\s*(\n|$)", re.DOTALL)


@dataclass
class Repo:
    """The commits of one repository: for each its files, as path -> content. The last one is `main`."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    head: str = ""

    def commit(self, files: dict[str, bytes], message: str) -> str:
        digests = "".join(path + hashlib.sha256(content).hexdigest() for path, content in sorted(files.items()))
        self.head = hashlib.sha1(digests.encode()).hexdigest()
        self.commits[self.head] = files
        self.messages.append(message)
        return self.head


def is_lfs(path: str, content: bytes, size: int) -> bool:
    return size > 0 and (Path(path).suffix in LFS_SUFFIXES or size >= LFS_SIZE or b"\0" in content[:512])


def object_id(path: str, content: bytes) -> str:
    """What the client compares with its local file: SHA-256 for LFS files, the git blob id for the others."""
    if is_lfs(path, content, len(content)):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def card_errors(content: str) -> list[str]:
    """What the Hub finds wrong in the YAML of a card: the checks a model card of this project could fail."""
    found = FRONT_MATTER.match(content)
    try:
        data = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError as error:
        return [f"YAML is not valid: {error}"]
    if not isinstance(data, dict):
        return ["Card metadata must be an object"]
    bases = data.get("base_model") or []
    bad = [base for base in ([bases] if isinstance(bases, str) else bases) if not MODEL_ID.fullmatch(base)]
    return [
        f'"base_model" with value "{base}" is not valid. Use a model id from https://hf.co/models.' for base in bad
    ]


class Repositories:
    """All repositories by id (`user/name`), and the LFS objects that were uploaded, by SHA-256.

    Args:
        directory: Folder in which the files of `main` are kept as they are, and found again; None: in memory only.
    """

    def __init__(self, directory: str | Path | None = None) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.directory = None if directory is None else Path(directory)
        self._load()

    def files(self, repo_id: str) -> dict[str, bytes]:
        """The files on `main`, path -> content; KeyError when there is no such repository."""
        repo = self.repos[repo_id]
        return dict(repo.commits[repo.head])

    def messages(self, repo_id: str) -> list[str]:
        """The messages of all commits, oldest first; the first is that of the creation."""
        return list(self.repos[repo_id].messages)

    def create_repo(self, repo_id: str) -> Repo:
        """The repository, made with an empty first commit where there is none."""
        with self.lock:
            if repo_id not in self.repos:
                self.repos[repo_id] = Repo()
                self.repos[repo_id].commit({}, "initial commit")
            return self.repos[repo_id]

    def commit(self, repo_id: str, lines: list[dict]) -> str:
        """Apply the lines of a commit (header, files, deletions) to `main`; the new commit's id."""
        with self.lock:
            files = self.files(repo_id)
            for line in lines:
                self._apply(line["key"], line["value"], files)
            sha = self.repos[repo_id].commit(files, lines[0]["value"]["summary"])
            self._store(repo_id, files)
        return sha

    def _apply(self, key: str, value: dict, files: dict[str, bytes]) -> None:
        if key == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            files[value["path"]] = self.objects[value["oid"]]
        elif key == "deletedFile":
            del files[value["path"]]
        elif key == "deletedFolder":
            for path in [path for path in files if path.startswith(value["path"].rstrip("/") + "/")]:
                del files[path]

    def _store(self, repo_id: str, files: dict[str, bytes]) -> None:
        if self.directory is None:
            return
        root = self.directory / repo_id
        for path in [path for path in root.rglob("*") if path.is_file() and str(path.relative_to(root)) not in files]:
            path.unlink()
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)

    def _load(self) -> None:
        for root in [] if self.directory is None else self.directory.glob("*/*/"):
            paths = [path for path in root.rglob("*") if path.is_file()]
            files = {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
            self.create_repo(root.relative_to(self.directory).as_posix()).commit(files, "found in the folder")
