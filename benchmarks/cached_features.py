"""Measures how much faster epochs with cached features of the teacher are, and what few crops cost in quality; JSON.

    python benchmarks/cached_features.py --teacher outputs/teacher_0.25/planted

Students of a comparison are trained with new crops and the teacher's pass in every epoch (`0` crops), and with
`--cache_teacher_features` and each number of crops in `--crops`, and probed as `singer-hf compare` does. Images are
loaded in the same process. Given are processor seconds per epoch: of all epochs without a cache, of those that write
the cache, and of those that read it.
"""

import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import median

import torch
from transformers import TrainerCallback

from singer_hf.commands.command_line import CommandParser, one_line_errors
from singer_hf.comparison.cells import prepare_trainer
from singer_hf.comparison.images import probe_images
from singer_hf.comparison.measure.cell_metrics import probe_metrics
from singer_hf.comparison.study import Study, read_study
from singer_hf.configs import COMPARISONS, find
from singer_hf.training.arguments import SingerTrainingArguments


@dataclass
class Settings:
    teacher: str = field(metadata={"help": "Folder of the teacher, with an image processor."})
    study: str = field(default="cifar10_objectives", metadata={"help": "Comparison: images, student, methods."})
    method: str = field(default="singer", metadata={"help": "One of its methods."})
    num_epochs: int = field(default=5, metadata={"help": "Epochs of every student."})
    crops: list[int] = field(default_factory=lambda: [1], metadata={"help": "Numbers of cached crops."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of students and crops."})


class EpochTimes(TrainerCallback):
    """Processor seconds of every epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_epoch_begin(self, *args: object, **kwargs: object) -> None:
        self.started = time.process_time()

    def on_epoch_end(self, *args: object, **kwargs: object) -> None:
        self.seconds.append(round(time.process_time() - self.started, 2))


def train(study: Study, settings: Settings, crops: int, seed: int) -> dict:
    """One student: seconds of its epochs, probes in %, bytes of the cache for one crop of an image."""
    own = {"num_train_epochs": settings.num_epochs, "seed": seed, "dataloader_num_workers": 0, "save_strategy": "no"}
    own |= {"num_artifact_images": 0, "report_to": "none", "disable_tqdm": True, "overwrite_output_dir": True}
    own |= study.training | dict(study.methods[settings.method].training)
    with tempfile.TemporaryDirectory() as folder:
        cache = {"cache_teacher_features": f"{folder}/cache", "num_cached_crops": crops} if crops else {}
        args = SingerTrainingArguments(output_dir=f"{folder}/run", **own, **cache)
        times = EpochTimes()
        trainer = prepare_trainer(study, settings.method, seed, args, callbacks=[times])
        trainer.train()
        metrics = probe_metrics(trainer.student.eval(), trainer.processing_class, *probe_images(study))
        size = sum(file.stat().st_size for file in Path(folder, "cache").glob("*"))
    row = {name: round(100 * value, 2) for name, value in metrics.items()} | {"seconds": times.seconds}
    row |= {"kilobytes per crop": round(size / 1e3 / max(1, crops) / len(trainer.train_dataset), 1)}
    print(json.dumps({"crops": crops, "seed": seed} | row), file=sys.stderr, flush=True)
    return row


def summarize(rows: list[dict], crops: int) -> dict[str, float]:
    """Median seconds of the epochs that run the teacher, and of those that read the cache."""
    live = [value for row in rows for value in row["seconds"][: crops or None]]
    read = [value for row in rows for value in row["seconds"][crops:]] if crops else []
    return {"epoch with the teacher's pass": median(live)} | ({"epoch that reads": median(read)} if read else {})


@one_line_errors()
def main() -> None:
    (settings,) = CommandParser(Settings).parse(sys.argv[1:])
    torch.set_num_threads(1)
    own = {"methods": [settings.method], "teacher_name_or_path": settings.teacher}
    study = read_study(find(settings.study, COMPARISONS), **own)
    rows: dict[int, list[dict]] = {crops: [] for crops in (0, *settings.crops)}
    for seed in settings.seeds:
        for crops, results in rows.items():
            results.append(train(study, settings, crops, seed))
    result = {"settings": vars(settings), "students": rows, "date": date.today().isoformat()}
    result["processor seconds"] = {crops: summarize(results, crops) for crops, results in rows.items()}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
