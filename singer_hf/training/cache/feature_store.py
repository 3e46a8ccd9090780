"""The files of a cache of features: tokens in float16, memory-mapped, and a list of the rows that are complete."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

_TOKENS, _DONE, _KEY = "tokens.bin", "complete.bin", "cache.json"


class FeatureStore:
    """Tokens of every crop of every image. Processes of one machine may share the files.

    A row that is written counts as complete after :meth:`commit`; what was not committed is written again by a run
    that takes the cache up.

    Args:
        folder: Folder of the cache; created if there is none.
        num_images: Images N.
        num_crops: Crops K of each image; the row of crop k of image i is k N + i.
        shape: (blocks, tokens, width) of a row.
        key: What the features depend on, as JSON values; those of a cache that is there must be the same.

    Raises:
        ValueError: If the folder holds the features of another teacher, other blocks or other images.
        OSError: If the cache does not fit on the disk.
    """

    def __init__(
        self, folder: str | Path, num_images: int, num_crops: int, shape: tuple[int, ...], key: dict[str, Any]
    ) -> None:
        self.folder, self.num_images, self.num_crops, self.shape = Path(folder), num_images, num_crops, shape
        self._written: list[np.ndarray] = []
        self._check_key(key)
        self._allocate()
        (self.folder / _KEY).write_text(json.dumps(key, indent=2) + "\n", encoding="utf-8")
        self._map()

    @property
    def num_rows(self) -> int:
        """K N."""
        return self.num_crops * self.num_images

    @property
    def num_bytes(self) -> int:
        """Size of the tokens of all rows in bytes."""
        return self.num_rows * int(np.prod(self.shape)) * np.dtype(np.float16).itemsize

    @property
    def num_complete(self) -> int:
        """Number of complete rows."""
        return int(np.count_nonzero(self.done))

    def read(self, row: int) -> np.ndarray | None:
        """A copy of the tokens of a row, float16 of ``shape``; None if it is not complete.

        Args:
            row: Number of the row.
        """
        return np.array(self.tokens[row]) if self.done[row] else None

    def write(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        """Writes tokens.

        Args:
            rows: Numbers of the rows, B of them.
            tokens: float16 (B, blocks, tokens, width).

        Raises:
            FloatingPointError: If a value is too large for float16, NaN or infinite.
        """
        if not np.isfinite(tokens).all():
            raise FloatingPointError(
                "the teacher's features do not fit into float16 or are not finite: leave out `cache_teacher_features`"
            )
        self.tokens[rows] = tokens
        self._written.append(rows)

    def commit(self) -> None:
        """Makes what was written count as complete, once it is on the disk."""
        if self._written:
            self.tokens.flush()
            self.done[np.concatenate(self._written)] = 1
            self.done.flush()
            self._written = []

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("tokens", "done")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map()

    def _check_key(self, key: dict[str, Any]) -> None:
        file = self.folder / _KEY
        if not file.is_file():
            return
        saved = json.loads(file.read_text(encoding="utf-8"))
        if differing := sorted(name for name in {*key, *saved} if key.get(name) != saved.get(name)):
            raise ValueError(
                f"`cache_teacher_features`: {str(self.folder)!r} holds the features of another run, with other "
                f"{', '.join(differing)}; give another folder, or delete this one"
            )

    def _allocate(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        there = sum((self.folder / name).stat().st_size for name in (_TOKENS,) if (self.folder / name).is_file())
        free, needed = shutil.disk_usage(self.folder).free, self.num_bytes - there
        if free < needed:
            raise OSError(
                f"`cache_teacher_features` takes {self.num_bytes / 1e9:.1f} GB and only {free / 1e9:.1f} GB are free "
                f"at {str(self.folder)!r}; free some space, take fewer `num_cached_crops`, or leave it out"
            )
        for name, size in ((_TOKENS, self.num_bytes), (_DONE, self.num_rows)):
            with (self.folder / name).open("ab") as file:
                # Reserved: a mapped file on a full disk ends the process without a message.
                os.posix_fallocate(file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else file.truncate(size)

    def _map(self) -> None:
        rows = (self.num_rows,)
        self.tokens = np.memmap(self.folder / _TOKENS, np.float16, "r+", shape=(*rows, *self.shape))
        self.done = np.memmap(self.folder / _DONE, np.uint8, "r+", shape=rows)
