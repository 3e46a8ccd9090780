"""Kills a small training run at random file operations, resumes it, and compares it with an uninterrupted run.

    python tests/faults/random_kills.py --rounds 20 --seed 0

Run by hand; CI runs a few fixed cases. Every round kills a run one to three times with SIGKILL, each time at a random
write, rename or removal below its output folder, so also in the middle of saving a checkpoint or of rotating old ones.
Then the run is resumed to its end. Exits with 1 if a resumed run differs in any weight.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "builders")]
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
WEIGHTS = ("model.safetensors", "projectors/model.safetensors", "singer/adapter_model.safetensors")


def run(folder: str, kill_at: int) -> None:
    """Trains in this process, from the last checkpoint if there is one; dies at file operation number `kill_at`."""
    from runs import make_resumable

    trainer = make_resumable(folder)
    count = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal count
        if event in EVENTS and arguments and str(arguments[0]).startswith(folder) and _writes(event, arguments):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()
    print(f"operations {count}")


def _writes(event: str, arguments: tuple) -> bool:
    """Whether an `open` event opens for writing; other events always change files."""
    return event != "open" or bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))


def start(folder: Path, kill_at: int = 0) -> subprocess.CompletedProcess:
    """Runs :func:`run` in a process of its own."""
    command = [sys.executable, __file__, "--folder", str(folder), "--kill_at", str(kill_at)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def differences(folder: Path, expected: Path) -> list[str]:
    """Names of the saved weights that are not equal."""
    from safetensors.torch import load_file

    found = []
    for name in WEIGHTS:
        own, other = load_file(folder / name), load_file(expected / name)
        found += [f"{name}: {key}" for key in other if not own[key].equal(other[key])]
    return found


def rounds(number: int, seed: int) -> int:
    """Returns the number of rounds whose result differs or whose resumed run fails."""
    rng, failed = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as directory:
        straight = Path(directory, "straight")
        done = start(straight)
        total = int(done.stdout.split("operations ")[1].split()[0])
        for index in tqdm(range(number), "rounds"):
            folder = Path(directory, f"round{index}")
            places = [rng.randint(1, total) for _ in range(rng.randint(1, 3))]
            codes = [start(folder, place).returncode for place in places]
            last = start(folder)
            problems = [last.stderr[-2000:]] if last.returncode else differences(folder, straight)
            if problems:
                failed += 1
                tqdm.write(f"round {index}, killed at {places} (exit codes {codes}): {problems[:3]}")
    return failed


def main() -> None:
    """Parses the flags and runs the rounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--kill_at", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        run(arguments.folder, arguments.kill_at)
        return
    failed = rounds(arguments.rounds, arguments.seed)
    print(f"{failed} of {arguments.rounds} rounds failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
