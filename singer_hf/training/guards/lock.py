"""Lock of an output folder: one run at a time."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

# Names with a leading underscore are never pushed.
LOCK_FILE = "_run.lock"


@contextmanager
def run_lock(folder: str | Path) -> Iterator[None]:
    """A context in which no other process trains into ``folder``.

    The lock belongs to the open file, so the operating system releases it when the process dies, however it dies. The
    file names the process for the message; its presence alone does not lock anything.

    Raises:
        ValueError: If another run holds the lock.
    """
    file = Path(folder) / LOCK_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ValueError(
            f"`output_dir` must be used by one run at a time, {str(folder)!r} is in use by {_holder(file)}; wait for "
            "the end of that run, stop it, or use another folder"
        ) from error
    try:
        with suppress(OSError):  # Windows does not let another handle write into a locked file
            file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            file.unlink()
        lock.release()


def _holder(file: Path) -> str:
    with suppress(OSError):
        return file.read_text(encoding="utf-8").strip() or "another process"
    return "another process"
