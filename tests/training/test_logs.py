"""What a run shows while it trains: the images on which artifacts are measured, the lines on the console."""

import sys
import types

import pytest
import torch
from runs import StopAt, image_dataset, make_trainer, training_rows
from transformers import ProgressCallback
from transformers.trainer_callback import PrinterCallback

from singer_hf.data.transforms import eval_transform
from singer_hf.training.logs.console import LEGEND, LineProgress, other_lines, table_lines

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")
RATIOS = ("teacher_outlier_ratio", "refined_outlier_ratio", "student_outlier_ratio")
LOGS = {"loss": 1.25, "grad_norm": 3.0, "learning_rate": 1e-3, "kd_loss": 0.5, "outlier_loss": 1.2345e-5}
LOGS |= {"info_loss": 0.25, **dict(zip(RATIOS, (11.9, 1.7, 1.25), strict=True)), "adapter_leakage": 0.1, "epoch": 1}


def trained(folder, **options):
    trainer = make_trainer(folder, **{"num_artifact_images": 5, "max_steps": 4, **options})
    trainer.train()
    return trainer


def teacher_ratios(trainer):
    return [row["teacher_outlier_ratio"] for row in training_rows(trainer)]


def test_artifacts_are_measured_on_the_same_center_views_in_every_log_and_after_a_resume(tmp_path):
    trainer = trained(tmp_path / "run")
    images = trainer.artifact_images.pixel_values
    transform = eval_transform(trainer.processing_class)
    views = torch.stack([transform(row["image"]) for row in image_dataset()])
    places = [int((views == image).flatten(1).all(dim=1).nonzero()) for image in images]
    assert len(set(places)) == 5
    assert len(set(teacher_ratios(trainer))) == 1
    stopped = trained(tmp_path / "resumed", callbacks=[StopAt(2)])
    resumed = make_trainer(tmp_path / "resumed", num_artifact_images=5)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(resumed.artifact_images.pixel_values, images)
    assert teacher_ratios(stopped)[0] == teacher_ratios(resumed)[-1] == teacher_ratios(trainer)[0]


def test_measuring_changes_nothing_of_the_training(tmp_path):
    both = [trained(tmp_path / str(n), num_artifact_images=n) for n in (0, 5)]
    assert [row["loss"] for row in training_rows(both[0])] == [row["loss"] for row in training_rows(both[1])]


class NoisyRows(torch.utils.data.Dataset):
    """Rows that draw random numbers of their own, as an augmentation does."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"pixel_values": torch.full((3, 32, 32), index / 8) + 0.01 * torch.rand(3, 32, 32)}


class OwnStream(torch.utils.data.IterableDataset):
    """A stream that can be read only once."""

    def __init__(self):
        self.rows = iter([{"pixel_values": row} for row in torch.rand(64, 3, 32, 32)])

    def __iter__(self):
        return self.rows


def test_rows_of_the_user_s_own_are_kept_and_their_random_numbers_are_not_taken(tmp_path):
    losses = []
    for number in (0, 3):
        trainer = trained(tmp_path / str(number), train_dataset=NoisyRows(), num_artifact_images=number)
        losses.append([row["loss"] for row in training_rows(trainer)])
    assert losses[0] == losses[1]
    assert trainer.artifact_images.pixel_values.shape == (3, 3, 32, 32)
    assert len(set(teacher_ratios(trainer))) == 1


def test_streams_are_measured_on_their_first_images(tmp_path):
    stream = image_dataset().to_iterable_dataset()
    trainer = trained(tmp_path / "hub", train_dataset=stream)
    transform = eval_transform(trainer.processing_class)
    first = torch.stack([transform(row["image"]) for row in image_dataset().select(range(5))])
    assert torch.equal(trainer.artifact_images.pixel_values, first)
    own = trained(tmp_path / "own", train_dataset=OwnStream(), num_artifact_images=2)
    assert len(set(teacher_ratios(own))) == 1


def test_a_log_is_one_line_of_80_characters_with_a_header():
    header, line = table_lines(LOGS, 50, 250200, 5025.0)
    assert header == "  step    loss      kd outlier    info teacher refined student      lr     ETA"
    assert line == "    50    1.25     0.5 1.2e-05    0.25   11.90    1.70    1.25   0.001 1:23:45"
    assert len(LEGEND) <= 80
    several = {"loss": 1.0, **{f"a_rather_long_name_{n}_kd_loss": 0.5 for n in range(6)}, "learning_rate": 0.1}
    header, line = table_lines(several, 7, 100, 5.0)
    assert len(header) == len(line) <= 80
    assert header.split() == ["step", "loss", *(f"a_rather_long_name_{n}_kd" for n in range(2)), "lr", "ETA"]


def test_evaluations_and_the_end_are_lines_too():
    metrics = {
        "eval_loss": 1.5,
        "eval_knn_top1": 0.43212,
        "eval_runtime": 3.0,
        "eval_steps_per_second": 2.0,
        "epoch": 1,
    }
    assert other_lines(metrics, 12) == ["evaluation at step 12: loss 1.5, knn_top1 0.4321"]
    end = {"train_runtime": 83.0, "train_samples_per_second": 512.3, "train_loss": 1.0, "epoch": 1}
    assert other_lines(end, 12) == ["trained for 01:23, 512 images a second"]
    assert all(len(line) <= 80 for line in other_lines({f"eval_metric_{n}": 0.5 for n in range(20)}, 3))


def test_the_console_has_one_header_and_a_line_per_log(tmp_path, capsys):
    shown = {"disable_tqdm": False, "logging_steps": 2, "eval_dataset": image_dataset(8)}
    shown |= {"eval_strategy": "steps", "eval_steps": 2}
    trained(tmp_path, **shown)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [line.split()[0] for line in lines] == ["teacher,", "step", "2", "evaluation", "4", "evaluation", "trained"]
    assert all(len(line) <= 80 for line in lines)
    assert "{" not in "".join(lines)


def test_only_the_progress_of_transformers_is_replaced(tmp_path):
    class Own(ProgressCallback):
        """A progress of the user's."""

    def shown(**options):
        callbacks = make_trainer(tmp_path, **options).callback_handler.callbacks
        return [type(item) for item in callbacks if isinstance(item, ProgressCallback | PrinterCallback)]

    assert shown(disable_tqdm=False, callbacks=[Own]) == [Own, LineProgress]
    assert shown(disable_tqdm=True) == [PrinterCallback]


def test_the_table_in_a_notebook_has_all_losses(tmp_path, monkeypatch):
    display = types.ModuleType("IPython.display")
    display.HTML, shown = str, []
    display.display = lambda html, **_: shown.append(html) or types.SimpleNamespace(update=shown.append)
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    from singer_hf.training.logs.notebook import TableProgress

    options = {"eval_dataset": image_dataset(8), "eval_strategy": "steps", "eval_steps": 4, "logging_steps": 2}
    trained(tmp_path, callbacks=[TableProgress()], **options)
    table = shown[-1]
    titles = (
        "Step",
        "Training Loss",
        "Kd Loss",
        "Outlier Loss",
        "Info Loss",
        "Student Outlier Ratio",
        "Validation Loss",
    )
    assert all(f"<th>{title}</th>" in table for title in titles)
    assert table.count("<tr") == 1 + 2
