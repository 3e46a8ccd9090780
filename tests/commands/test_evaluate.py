"""The command `evaluate`: flags, files, messages."""

import json

import pytest
from in_process import make_runner
from labelled import colour_dataset, half_masks, image_folder, saved_model

from singer_hf.cards.student_card import CardInfo, student_card
from singer_hf.commands import evaluate as evaluate_command

SMALL = ("--num_epochs", 1, "--resamples", 5, "--max_train_samples", 12, "--max_test_samples", 6, "--batch_size", 6)


@pytest.fixture(scope="module")
def command():
    return evaluate_command


@pytest.fixture
def run(command, monkeypatch, capsys):
    """Runs the command in this process; returns its error message, or None."""
    return make_runner(command, "evaluate.py", monkeypatch, capsys)


@pytest.fixture
def model(tmp_path):
    return saved_model(tmp_path / "student")


def results(folder):
    return json.loads((folder / "results.json").read_text())["results"]


def main_metrics(folder):
    main = ("top1", "mean_iou", "rmse", "knn_top1")
    return {(row["model"], row["benchmark"]): row for row in results(folder) if row["metric"] in main}


def test_the_list_needs_no_model(run, capsys):
    assert run("--list") is None
    shown = capsys.readouterr().out
    assert "| food101 | classification | top1 | ethz/food101 | train / validation | 75,750 / 25,250 |" in shown
    assert "Groups: DS = imagenet-r, imagenet-v2" in shown


def test_several_models_on_all_three_tasks_of_the_scenes_give_one_table(run, model, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    other, out = saved_model(tmp_path / "other", seed=1), tmp_path / "out"
    assert run("--model_name_or_path", model, other, "--benchmark", "scenes", "--output_dir", out, *SMALL) is None
    tasks = ("classification", "segmentation", "depth")
    assert set(main_metrics(out)) == {(name, f"scenes-{task}") for name in ("student", "other") for task in tasks}
    table = capsys.readouterr().out
    assert "| model | parameters | scenes-classification top1 ↑ | scenes-segmentation mean_iou ↑ |" in table
    figures = {file.name for file in (out / "figures").iterdir()}
    assert {"scenes-segmentation_pictures.png", "scenes-depth_pictures.png"} <= figures
    assert {"scenes-classification_confusion_student.png", "scenes-depth_size.png"} <= figures
    row = main_metrics(out)["student", "scenes-classification"]
    assert (row["n"], row["num_train"], row["protocol"], row["image_size"]) == (6, 12, "singer", [16, 16])
    assert row["changes"] == {"num_epochs": 1, "batch_size": 6}


def test_the_same_command_gives_the_same_metrics(run, model, tmp_path):
    flags = ("--model_name_or_path", model, "--benchmark", "scenes-classification", *SMALL)
    for out in ("one", "two"):
        assert run(*flags, "--output_dir", tmp_path / out) is None
    assert results(tmp_path / "one") == results(tmp_path / "two")


def test_a_benchmark_on_a_local_folder_with_windows_over_images_that_are_not_square(run, model, tmp_path):
    for split, seed in (("train", 0), ("test", 1)):
        half_masks(6, seed=seed).to_parquet(tmp_path / f"{split}.parquet")
    folder, out = tmp_path / "camvid", tmp_path / "out"
    folder.mkdir()
    for split in ("train", "test"):
        (tmp_path / f"{split}.parquet").rename(folder / f"{split}.parquet")
    flags = ("--benchmark", "camvid", "--dataset_name", folder, "--protocol", "dinov2", "--learning_rates", 0.1)
    assert run("--model_name_or_path", model, *flags, "--resize_size", 20, "--output_dir", out, *SMALL) is None
    row = main_metrics(out)["student", "camvid"]
    assert row["dataset"] == "camvid"
    assert row["changes"]["resize_size"] == 20
    assert str(tmp_path) not in (out / "results.json").read_text()


def test_results_of_another_model_with_the_same_name_are_not_replaced(run, model, tmp_path):
    again, out = saved_model(tmp_path / "later" / "student", seed=1), tmp_path / "out"
    flags = ("--benchmark", "scenes-classification", "--output_dir", out, *SMALL)
    assert run("--model_name_or_path", model, *flags) is None
    before = (out / "results.json").read_bytes()
    assert run("--model_name_or_path", again, *flags) == (
        "error: `output_dir` holds results of another model with the name 'student', from another folder; take "
        "another `output_dir`, or rename the model's folder"
    )
    assert (out / "results.json").read_bytes() == before
    saved_model(tmp_path / "student", seed=2)  # trained again in its own folder
    assert run("--model_name_or_path", model, *flags) is None
    assert (out / "results.json").read_bytes() != before


def test_results_add_up_in_one_folder_and_damaged_ones_stay(run, model, tmp_path, capsys):
    folder, out = image_folder(tmp_path / "photos", {"train": ["a", "b"], "test": ["a", "b"]}), tmp_path / "out"
    other, flags = saved_model(tmp_path / "other", seed=1), ("--dataset_name", folder, "--output_dir", out, *SMALL)
    assert run("--model_name_or_path", model, "--task", "knn", *flags) is None
    assert run("--model_name_or_path", other, "--task", "knn", *flags) is None
    assert run("--model_name_or_path", model, "--task", "classification", *flags) is None
    assert "| model | parameters | photos knn_top1 ↑ | photos top1 ↑ |" in capsys.readouterr().out
    assert [(row["model"], row["task"]) for row in results(out) if row["metric"] in ("knn_top1", "top1")] == [
        ("student", "knn"),
        ("other", "knn"),
        ("student", "classification"),
    ]
    assert run("--model_name_or_path", other, "--task", "classification", *flags, "--seed", 1) == (
        "error: `output_dir` holds results of 'student' on 'photos' with seed 0, now it is 1: one table would compare "
        "different settings; take another `output_dir`"
    )
    (out / "results.json").write_text('{"results": [')
    message = run("--model_name_or_path", other, "--task", "knn", *flags)
    assert message.startswith(f"error: '{out / 'results.json'}' holds no results of an evaluation (JSONDecodeError: ")
    assert (out / "results.json").read_text() == '{"results": ['


def test_all_runs_what_is_on_this_machine_and_says_what_it_skips(run, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    flags = (
        "--benchmark",
        "all",
        "--task",
        "knn",
        "--output_dir",
        tmp_path / "out",
        *SMALL,
        "--max_train_samples",
        100,
    )
    assert run("--model_name_or_path", model, *flags) is None
    assert set(main_metrics(tmp_path / "out")) == {("student", "scenes-classification")}
    shown = capsys.readouterr().out
    assert "skipped food101: 'ethz/food101' is not on this machine; name the benchmark to load it\n" in shown
    assert "skipped imagenet-r: 'axiong/imagenet-r' is not on this machine" in shown
    assert "skipped ade20k" not in shown


def test_a_folder_of_folders_is_the_data_of_several_benchmarks(run, model, tmp_path):
    image_folder(tmp_path / "copies/inat2019", {"train": ["a", "b"], "validation": ["a", "b"]})
    flags = ("--benchmark", "inat2019", "cifar10", "--dataset_name", tmp_path / "copies", "--output_dir", tmp_path)
    assert run("--model_name_or_path", model, *flags, *SMALL).startswith(
        "error: `num_classes` of 'inat2019' must be 1010, got 2 in the training split"
    )


def test_own_images_by_neighbours(run, model, tmp_path):
    folder = image_folder(tmp_path / "photos", {"train": ["a", "b"], "test": ["a", "b"]})
    flags = ("--task", "knn", "--dataset_name", folder, "--output_dir", tmp_path / "out")
    assert run("--model_name_or_path", model, *flags, *SMALL) is None
    assert main_metrics(tmp_path / "out")["student", "photos"]["value"] > 0.8


def test_own_masks_need_their_number_of_classes(run, model, tmp_path):
    for split in ("train", "test"):
        half_masks(4).to_parquet(tmp_path / f"{split}.parquet")
    flags = ("--task", "segmentation", "--dataset_name", tmp_path, "--output_dir", tmp_path / "out", *SMALL)
    message = run("--model_name_or_path", model, *flags)
    assert message.startswith("error: `num_classes` must be the number of classes in the masks of")
    more = ("--num_classes", 2, "--ignore_values", 11, 255)
    assert run("--model_name_or_path", model, *flags, *more) is None


def test_metrics_go_into_the_student_s_card(run, model, tmp_path):
    student_card(CardInfo(student_class="ViTModel")).save(model / "README.md")
    flags = ("--benchmark", "scenes-classification", "--output_dir", tmp_path / "out", "--write_card", *SMALL)
    teacher = saved_model(tmp_path / "teacher")
    (teacher / "README.md").write_text("# A teacher\n")
    assert run("--model_name_or_path", teacher, *flags).startswith("error: `--write_card` needs a student's folder")
    assert run("--model_name_or_path", model, teacher, *flags) is None
    assert (teacher / "README.md").read_text() == "# A teacher\n"
    card = (model / "README.md").read_text()
    assert "model-index:" in card
    assert "name: drawn scenes" in card
    assert "type: top1" in card


def test_a_yaml_file_can_stand_in_place_of_the_flags(run, model, tmp_path):
    file = tmp_path / "run.yaml"
    lines = [f"model_name_or_path: [{model}]", "benchmark: [scenes-classification]", f"output_dir: {tmp_path / 'out'}"]
    lines += ["num_epochs: 1", "resamples: 5", "max_train_samples: 12", "max_test_samples: 6"]
    file.write_text("\n".join(lines))
    assert run(file) is None
    assert len(main_metrics(tmp_path / "out")) == 1


def test_a_benchmark_that_cannot_be_reached_does_not_lose_the_others(run, model, tmp_path):
    flags = ("--benchmark", "food101", "scenes-classification", "--output_dir", tmp_path / "out", *SMALL)
    message = run("--model_name_or_path", model, *flags)
    assert "'food101' cannot be reached (tried 'ethz/food101', split 'train')" in message
    assert "`--dataset_name FOLDER`" in message
    assert set(main_metrics(tmp_path / "out")) == {("student", "scenes-classification")}


def test_bad_flags_are_refused_with_what_to_do(run, model, tmp_path):
    colour_dataset(6).to_parquet(tmp_path / "train.parquet")
    base = ("--model_name_or_path", model)
    assert run() == "error: `--model_name_or_path` must name at least one model"
    assert run(*base).startswith("error: give `--benchmark NAME` (see `--list`), or `--task` with `--dataset_name`")
    assert run(*base, "--benchmark", "mnist").startswith("error: `benchmark` must be one of ['DS', 'FG',")
    assert run(*base, "--benchmark", "scenes", "--protocol", "own").startswith("error: `protocol` must be one of")
    assert run(*base, "--benchmark", "cifar10", "--task", "depth").startswith(
        "error: `--task` with `--benchmark` must be knn, got 'depth'"
    )
    assert run(*base, "--benchmark", "DS", "--dataset_name", tmp_path).startswith(
        "error: `dataset_name` for several benchmarks must be a folder with a folder 'imagenet-r' and so on, got"
    )
    assert run(*base, "--benchmark", "DS", "--num_classes", 2) == (
        "error: `num_classes` must be left out for several benchmarks, got 2"
    )
    assert "`model_name_or_path` must be a module, a local folder" in run(
        "--model_name_or_path", tmp_path / "none", "--benchmark", "scenes", "--processor_name_or_path", model
    )
    assert "`processor` (`--processor_name_or_path`) must be given: the model" in run(
        "--model_name_or_path", tmp_path / "none", "--benchmark", "scenes"
    )


@pytest.mark.parametrize(
    "name", ["num_epochs", "batch_size", "image_size", "resize_size", "resamples", "max_train_samples", "num_classes"]
)
def test_zero_is_refused_and_not_replaced_by_the_protocol_s_value(run, name):
    flags = ("--model_name_or_path", "m", "--benchmark", "scenes")
    assert run(*flags, f"--{name}", 0) == f"error: `--{name}` must be at least 1, got 0"


def test_other_numbers_out_of_their_range_are_refused(run):
    flags = ("--model_name_or_path", "m", "--benchmark", "scenes")
    assert run(*flags, "--num_workers", -1) == "error: `--num_workers` must be at least 0, got -1"
    assert run(*flags, "--learning_rates", 0.1, 0) == (
        "error: `--learning_rates` must be positive numbers, got [0.1, 0.0]"
    )
