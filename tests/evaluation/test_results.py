"""results.json, tables and the model card."""

import json

import pytest
import torch
from huggingface_hub import ModelCard

from singer_hf.cards.student_card import CardInfo, student_card
from singer_hf.evaluation.benchmarks.catalog import get_benchmark
from singer_hf.evaluation.results.card import write_to_card
from singer_hf.evaluation.results.files import check_comparable, read_results, write_per_class, write_results
from singer_hf.evaluation.results.result import Result
from singer_hf.evaluation.results.tables import all_metrics_table, mean_values, results_table


def result(**changes):
    values = {
        "model": "student",
        "benchmark": "food101",
        "task": "classification",
        "metric": "top1",
        "value": 0.71234,
        "low": 0.7,
        "high": 0.72,
        "n": 500,
        "seed": 3,
        "protocol": "singer",
        "dataset": "ethz/food101",
        "data_fingerprint": "abc",
        "num_parameters": 22_000_000,
    }
    return Result(**{**values, **changes})


def test_results_json_holds_what_is_needed_to_repeat_a_figure(tmp_path):
    rows = [result(changes={"num_epochs": 3}), result(metric="ece", value=0.1, low=float("nan"), high=float("nan"))]
    write_results(tmp_path, rows)
    data = json.loads((tmp_path / "results.json").read_text())
    first, second = data["results"]
    expected = {"metric": "top1", "value": 0.71234, "low": 0.7, "high": 0.72, "n": 500, "seed": 3}
    assert expected.items() <= first.items()
    assert first["protocol"] == "singer"
    assert first["changes"] == {"num_epochs": 3}
    assert first["data_fingerprint"] == "abc"
    assert first["greater_is_better"] is True
    assert second["greater_is_better"] is False
    assert second["low"] is None  # JSON has no NaN
    assert {"torch", "transformers", "singer-hf", "scikit-learn"} <= set(data["versions"])
    assert results_table(rows) in (tmp_path / "results.md").read_text()


def test_classes_are_reported_one_by_one(tmp_path):
    confusions = {"student": torch.tensor([[3, 1], [0, 0]]), "teacher": torch.tensor([[4, 0], [0, 0]])}
    write_per_class(tmp_path, get_benchmark("inat2019"), ["ant", "bee"], confusions)
    assert json.loads((tmp_path / "per_class_inat2019.json").read_text()) == [
        {"class": "ant", "n": 4, "student": 0.75, "teacher": 1.0},
        {"class": "bee", "n": 0, "student": None, "teacher": None},
    ]
    write_per_class(tmp_path, get_benchmark("inat2019"), ["ant", "bee"], {"new": torch.tensor([[2, 2], [0, 0]])})
    assert json.loads((tmp_path / "per_class_inat2019.json").read_text())[0] == {
        **{"class": "ant", "n": 4, "student": 0.75, "teacher": 1.0, "new": 0.5}
    }
    write_per_class(tmp_path, get_benchmark("camvid"), ["sky", "road"], confusions)
    assert (
        json.loads((tmp_path / "per_class_camvid.json").read_text())[1]["student"] == 0.0
    )  # predicted, but never true


def test_results_replace_those_of_the_same_row_and_leave_all_others(tmp_path):
    write_results(tmp_path, [result(), result(metric="ece", value=0.1), result(model="teacher", value=0.8)])
    write_results(tmp_path, [result(value=0.5), result(protocol="dinov2", value=0.6), result(benchmark="cifar10")])
    rows = [(row.model, row.benchmark, row.protocol, row.metric, row.value) for row in read_results(tmp_path)]
    assert rows == [
        ("student", "food101", "singer", "top1", 0.5),
        ("teacher", "food101", "singer", "top1", 0.8),
        ("student", "food101", "dinov2", "top1", 0.6),
        ("student", "cifar10", "singer", "top1", 0.71234),
    ]
    page = (tmp_path / "results.md").read_text().splitlines()
    assert page[0] == ("| model | parameters | food101 top1 ↑ (singer) | food101 top1 ↑ (dinov2) | cifar10 top1 ↑ |")
    assert page[3] == "| teacher | 22 M | 0.800 (0.700 to 0.720) | - | - |"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "results.md"]


def test_other_settings_are_refused_beside_other_models_only():
    column = ("food101", "classification", "singer")
    old = [result(changes={"learning_rates": [0.1]})]
    same = {"seed": 3, "changes": {"learning_rates": (0.1,)}, "data_fingerprint": "abc"}
    check_comparable(old, ["teacher"], column, same)
    check_comparable(old, ["student"], column, {"seed": 4})
    check_comparable(old, ["teacher"], (*column[:2], "dinov2"), {"seed": 4})
    with pytest.raises(ValueError, match=r"'student' on 'food101' with data_fingerprint 'abc', now it is 'def'"):
        check_comparable(old, ["teacher"], column, same | {"data_fingerprint": "def"})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"results": [1]}', '{"results": [{"model": "m"}]}'])
def test_a_file_that_is_no_evaluation_is_refused_and_stays(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results.json' holds no results of an evaluation .*; move it away, or take"):
        write_results(tmp_path, [result()])
    assert (tmp_path / "results.json").read_text() == text


def test_means_are_not_over_several_protocols():
    names = ("imagenet-r", "imagenet-v2")
    rows = [result(benchmark=name, protocol=protocol) for name in names for protocol in ("singer", "dinov2")]
    assert mean_values([*rows[:2], rows[2]]) == {"student": {"DS (singer)": 0.71234}}
    assert mean_values(rows[::2]) == {"student": {"DS": 0.71234}}


def test_nothing_is_written_without_results(tmp_path):
    with pytest.raises(ValueError, match=r"`results` must hold at least one metric, got none"):
        write_results(tmp_path, [])


def test_the_table_has_a_row_per_model_and_a_column_per_benchmark():
    rows = [
        result(),
        result(metric="ece", value=0.1),
        result(benchmark="nyud-v2", task="depth", metric="rmse", value=0.9406, low=0.9, high=1.0),
        result(model="teacher", value=0.8, low=0.79, high=0.81, num_parameters=300_000_000),
    ]
    assert results_table(rows).splitlines() == [
        "| model | parameters | food101 top1 ↑ | nyud-v2 rmse ↓ |",
        "|---|---|---|---|",
        "| student | 22 M | 0.712 (0.700 to 0.720) | 0.941 (0.900 to 1.000) |",
        "| teacher | 300 M | 0.800 (0.790 to 0.810) | - |",
    ]
    assert "| student | food101 | ece ↓ | 0.1000 |" in all_metrics_table(rows)


def test_the_means_of_the_paper_are_added_where_all_members_were_run():
    rows = [result(benchmark="imagenet-r", value=0.2), result(benchmark="imagenet-v2", value=0.5)]
    lines = results_table(rows).splitlines()
    assert lines[0].endswith("| DS |")
    assert lines[2].endswith("| 0.350 |")


def test_metrics_are_put_into_the_card_and_replace_older_ones(tmp_path):
    info = CardInfo(student_class="ViTModel", evaluations=[("depth", "nyuv2", "rmse", 1.2)])
    student_card(info).save(tmp_path / "README.md")
    write_to_card(tmp_path, [result(value=0.5), result(metric="ece", value=0.1)])
    write_to_card(tmp_path, [result(value=0.6)])
    card = ModelCard.load(tmp_path / "README.md")
    found = {(item.dataset_name, item.metric_type): item.metric_value for item in card.data.eval_results}
    assert found == {("nyuv2", "rmse"): 1.2, ("ethz/food101", "top1"): 0.6}
    assert "model-index" in (tmp_path / "README.md").read_text()
    section = card.text.split("## Evaluation\n")[1].split("## Limits")[0]
    assert (
        section.strip().splitlines()
        == [
            "",
            "| Task | Data | Metric | Value | 95 % interval | Images |",
            "|---|---|---|---|---|---|",
            "| depth | nyuv2 | rmse | 1.2 |  |  |",
            "| classification | ethz/food101 | top1 | 0.6 | 0.7 to 0.72 | 500 |",
            "",
            "Nothing else than these metrics was measured.",
        ][1:]
    )
    assert card.text.count("\n## ") == 6


def test_the_first_metric_replaces_the_sentence_that_there_is_none(tmp_path):
    student_card(CardInfo(student_class="ViTModel")).save(tmp_path / "README.md")
    assert "It was not evaluated on any task." in (tmp_path / "README.md").read_text()
    write_to_card(tmp_path, [result()])
    text = (tmp_path / "README.md").read_text()
    assert "It was not evaluated" not in text
    assert "| classification | ethz/food101 | top1 | 0.7123 | 0.7 to 0.72 | 500 |" in text


def test_a_folder_without_a_card_is_refused(tmp_path):
    message = r"`folder` must be a student's folder with the README.md of its training"
    with pytest.raises(ValueError, match=message):
        write_to_card(tmp_path, [result()])
    (tmp_path / "README.md").write_text("# Someone else's model\n")
    with pytest.raises(ValueError, match=message):
        write_to_card(tmp_path, [result()])
