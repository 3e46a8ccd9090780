"""The processes of a comparison share the GPUs that their parent was given."""

import multiprocessing
import subprocess
import sys

import pytest
import torch

from singer_hf.comparison import runner

# CUDA_VISIBLE_DEVICES of the parent, the GPUs that CUDA finds then, those of five processes in turn.
LISTS = [
    (None, 0, [None] * 5),
    (None, 2, ["0", "1", "0", "1", "0"]),
    ("2,3", 2, ["2", "3", "2", "3", "2"]),
    ("5", 1, ["5"] * 5),
    (" GPU-4f1a, MIG-77c2,9", 3, ["GPU-4f1a", "MIG-77c2", "9", "GPU-4f1a", "MIG-77c2"]),
    ("1,-1,0", 1, ["1"] * 5),  # CUDA ends the list at the first index that does not exist
    ("", 0, [""] * 5),
]


@pytest.mark.parametrize(("listed", "count", "expected"), LISTS)
def test_processes_take_the_gpus_of_the_parents_list_in_turn(monkeypatch, listed, count, expected):
    # Set before it is deleted, so that it is put back in the end either way.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed or "")
    if listed is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    gpus, counter, seen = runner._visible_gpus(), multiprocessing.Value("i", 0), []
    for _ in range(5):
        with monkeypatch.context() as process:
            process.setenv("CUDA_VISIBLE_DEVICES", listed or "")
            if listed is None:
                process.delenv("CUDA_VISIBLE_DEVICES")
            runner._start_worker(counter, 1, gpus)
            seen.append(runner.os.environ.get("CUDA_VISIBLE_DEVICES"))
    assert seen == expected


IMPORT = """
import torch
asked = []
for name in ("device_count", "is_available", "init"):
    setattr(torch.cuda, name, lambda *args, name=name: asked.append(name))
import singer_hf.comparison.runner
print(asked)
"""


def test_a_process_does_not_look_for_gpus_before_it_has_its_own():
    """The first look fixes what is visible to a process; a worker imports the runner before its GPU is set."""
    result = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
