"""The command `examples/train_teacher.py`: files, printed metrics, planting without training, resuming."""

import json
import runpy
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from runs import differing
from safetensors.torch import load_file
from tiny_study import STUDENT, make_images, save_images
from transformers import AutoImageProcessor, AutoModelForImageClassification

SCRIPT = str(Path(__file__).parents[2] / "examples" / "train_teacher.py")
CONFIG = {**STUDENT, "num_hidden_layers": 3, "intermediate_size": 33, "initializer_range": 0.2}
# The schedule must not depend on the number of epochs for a run of one epoch to be the start of one of two.
TRAINING = ("--per_device_train_batch_size", 8, "--lr_scheduler_type", "constant", "--warmup_steps", 0)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command in this process; what it printed."""
    torch.set_num_threads(1)

    def run(*flags):
        quiet = ("--use_cpu", "--report_to", "none", "--disable_tqdm", True)
        monkeypatch.setattr(sys, "argv", ["train_teacher.py", *map(str, (*flags, *quiet))])
        runpy.run_path(SCRIPT, run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("teacher")
    save_images(root / "images")
    (root / "config.json").write_text(json.dumps(CONFIG))
    return root


def flags(data, name, epochs=2):
    config = ("--dataset_name", data / "images", "--teacher_config", data / "config.json")
    return (*config, "--num_train_epochs", epochs, "--output_dir", data / name, *TRAINING)


@pytest.fixture
def straight(data, run):
    """Two epochs and the planting; made once."""
    printed = data / "straight.txt"
    if not printed.exists():
        printed.write_text(run(*flags(data, "straight")))
    return data / "straight", printed.read_text()


def weights(folder):
    return load_file(folder / "model.safetensors")


def metrics(folder):
    return json.loads((folder / "teacher.json").read_text())


@contextmanager
def refuse(message, capsys):
    """A context in which the command says this and exits."""
    with pytest.raises(SystemExit, match=r"^2$"):
        yield
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {message}"


def test_it_writes_both_teachers_and_their_metrics(straight, data):
    folder, printed = straight
    told = metrics(folder)
    assert {path.name for path in folder.iterdir()} >= {"unplanted", "planted", "teacher.json"}
    assert set(told) == {"command", "unplanted", "planted"}
    assert told["command"][0] == SCRIPT
    assert "--teacher_config" in told["command"]
    for name, title in (("unplanted", "As trained"), ("planted", "After planting")):
        assert f"{title}: top-1 accuracy {told[name]['top1']:.4f}" in printed
        classifier = AutoModelForImageClassification.from_pretrained(folder / name).eval()
        pixel_values = AutoImageProcessor.from_pretrained(folder / name)(make_images(24, 1), return_tensors="pt")
        with torch.no_grad():
            named = [classifier.config.id2label[int(i)] for i in classifier(**pixel_values).logits.argmax(1)]
        hits = sum(name == ("red", "green", "blue")[i % 3] for i, name in enumerate(named))
        assert told[name]["top1"] == hits / 24
    assert printed.count("block 0: median norm") == 2
    assert printed.index("As trained") < printed.index("After planting")


def test_tokens_are_planted_after_a_third_of_the_blocks(straight):
    folder, _ = straight
    unplanted, planted = (metrics(folder)[name]["blocks"] for name in ("unplanted", "planted"))
    assert len(planted) == 3
    assert planted[0] == unplanted[0]
    assert all(block["share"] > 0.01 for block in planted[1:])
    assert all(block["share"] == 0 for block in unplanted)


def test_training_leaves_the_reserved_units_and_planting_everything_else(straight):
    folder, _ = straight
    unplanted, planted = weights(folder / "unplanted"), weights(folder / "planted")
    inner = [name for name in unplanted if name.endswith("intermediate.dense.weight")]
    assert len(inner) == 3
    assert not any(unplanted[name][-1].any() for name in inner)
    assert differing(planted, unplanted) == {
        f"vit.encoder.layer.1.{name}" for name in ("intermediate.dense.weight", "intermediate.dense.bias")
    } | {"vit.encoder.layer.1.output.dense.weight"}


def test_a_trained_teacher_is_planted_again_bit_for_bit(straight, data, run):
    folder, _ = straight
    again = data / "again"
    printed = run("--dataset_name", data / "images", "--trained_teacher", folder / "unplanted", "--output_dir", again)
    assert differing(weights(again / "planted"), weights(folder / "planted")) == set()
    assert {path.name for path in again.iterdir()} == {"planted", "teacher.json"}
    assert {name: metrics(again)[name] for name in ("unplanted", "planted")} == {
        name: metrics(folder)[name] for name in ("unplanted", "planted")
    }
    assert "As trained: top-1 accuracy" in printed


def test_block_direction_and_share_can_be_chosen(straight, data, run):
    folder, _ = straight
    source = ("--dataset_name", data / "images", "--trained_teacher", folder / "unplanted")
    run(*source, "--output_dir", data / "other", "--planted_block", 2, "--planted_direction", "leading")
    changed = differing(weights(data / "other" / "planted"), weights(folder / "unplanted"))
    assert {name.split(".")[3] for name in changed} == {"2"}
    printed = run(*source, "--output_dir", data / "none", "--planted_share", 0)
    assert {path.name for path in (data / "none").iterdir()} == {"teacher.json"}
    assert "After planting" not in printed


def test_an_epoch_and_a_resumed_one_are_two_epochs(straight, data, run):
    folder, _ = straight
    run(*flags(data, "resumed", epochs=1))
    assert [path.name for path in (data / "resumed").glob("checkpoint-*")] == ["checkpoint-3"]
    before = weights(data / "resumed" / "unplanted")
    run(*flags(data, "resumed", epochs=2), "--resume", True)
    assert [path.name for path in (data / "resumed").glob("checkpoint-*")] == ["checkpoint-6"]
    after = weights(data / "resumed" / "unplanted")
    assert differing(after, before)
    assert differing(after, weights(folder / "unplanted")) == set()
    assert differing(weights(data / "resumed" / "planted"), weights(folder / "planted")) == set()


def test_without_a_checkpoint_there_is_nothing_to_resume(data, run, tmp_path, capsys):
    with refuse(f"`--resume` found no checkpoint in {str(tmp_path)!r}; omit it to start from the beginning", capsys):
        run(*flags(data, tmp_path), "--resume", True)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ((), "give exactly one of `--teacher_config` and `--trained_teacher`"),
        (
            ("--teacher_config", "c", "--trained_teacher", "t"),
            "give exactly one of `--teacher_config` and `--trained_teacher`",
        ),
        (
            ("--teacher_config", "c", "--planted_direction", "up"),
            "`--planted_direction` must be one of ('random', 'leading', 'read', 'unread'), got 'up'",
        ),
        (
            ("--teacher_config", "c", "--planted_share", 0.5),
            "`--planted_share` must lie in [0, 0.5), got 0.5",
        ),
    ],
)
def test_bad_flags_are_refused_before_anything_is_loaded(run, extra, message, capsys):
    with refuse(message, capsys):
        run("--dataset_name", "d", "--output_dir", "o", *extra)


def test_images_without_labels_are_refused(run, data, tmp_path, capsys):
    flat = tmp_path / "flat"
    for split in ("train", "test"):
        (flat / split).mkdir(parents=True)
        make_images(1, 0)[0].save(flat / split / "0.png")
    with refuse(f"`--dataset_name` must have class labels, got {str(flat)!r} without any", capsys):
        run("--dataset_name", flat, "--teacher_config", data / "config.json", "--output_dir", tmp_path)


def test_a_trained_teacher_without_an_image_processor_is_refused(straight, run, data, tmp_path, capsys):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(straight[0] / "unplanted" / name)
    with refuse(f"`--trained_teacher` must hold an image processor, got {str(tmp_path)!r}", capsys):
        run("--dataset_name", data / "images", "--trained_teacher", tmp_path, "--output_dir", tmp_path)
