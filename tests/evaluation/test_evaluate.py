"""`singer_hf.evaluate`: any models, tasks and benchmarks, one object with the results."""

import pytest
import torch
from datasets import DatasetDict
from labelled import colour_dataset, image_folder, saved_model, tiny_model
from peft import PeftModel, get_peft_model
from transformers import AutoImageProcessor, AutoModel

import singer_hf
from singer_hf import SingerConfig
from singer_hf.evaluation.data_at_hand import at_hand
from singer_hf.evaluation.evaluate_models import select_benchmarks
from singer_hf.evaluation.evaluation_results import EvaluationResults

SMALL = {"num_epochs": 1, "resamples": 5, "max_train_samples": 12, "max_test_samples": 6, "progress": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    saved_model(folder / "student")
    image_folder(folder / "photos", {"train": ["a", "b"], "test": ["a", "b"]})
    return folder


@pytest.fixture(scope="module")
def processor(folder):
    return AutoImageProcessor.from_pretrained(folder / "student")


@pytest.fixture(scope="module")
def results(folder):
    return singer_hf.evaluate(folder / "student", "scenes-classification", batch_size=6, **SMALL)


def test_modules_and_folders_are_evaluated_alike(folder, processor):
    model = tiny_model().train()
    given = [folder / "student", model, model]
    results = singer_hf.evaluate(given, "knn", folder / "photos", processor=processor, **SMALL)
    assert list(results.main) == ["student", "ViTModel (1)", "ViTModel (2)"]
    assert results.main["ViTModel (1)"] == results.main["ViTModel (2)"]
    assert results.main["student"]["photos"] > 0.8
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_splits_in_memory_are_evaluated_like_their_files(folder, tmp_path):
    splits = DatasetDict(train=colour_dataset(9), test=colour_dataset(6, seed=1))
    for name, rows in splits.items():
        rows.to_parquet(tmp_path / f"{name}.parquet")
    in_memory, on_disk = (
        singer_hf.evaluate(folder / "student", "knn", data, **SMALL).results for data in (splits, tmp_path)
    )
    assert [(item.metric, item.value) for item in in_memory] == [(item.metric, item.value) for item in on_disk]
    assert in_memory[0].data_fingerprint == on_disk[0].data_fingerprint


def test_results_are_saved_and_loaded_the_same(results, tmp_path):
    pytest.importorskip("matplotlib")
    file = results.save(tmp_path / "out")
    assert file == tmp_path / "out" / "results.json"
    names = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"results.json", "results.md", "per_class_scenes-classification.json"} <= names
    assert "scenes-classification_confusion_student.png" in names
    loaded = EvaluationResults.load(tmp_path / "out")
    assert loaded == results
    assert loaded.files == results.files


def test_results_show_themselves(results):
    (main,) = (item for item in results.results if item.is_main)
    page = results._repr_html_()
    assert f"<td>student</td><td>scenes-classification</td><td>top1 ↑</td><td><b>{main.value:.4f}</b></td>" in page
    assert page.count("<tr>") == 1 + len(results.results)
    assert str(results).startswith("| model | parameters | scenes-classification top1 ↑ |")
    frame = results.to_pandas()
    assert frame["value"].tolist() == [item.value for item in results.results]
    assert frame["model"].unique().tolist() == ["student"]


def test_an_output_folder_keeps_the_files_of_the_run(folder, tmp_path):
    singer_hf.evaluate(folder / "student", "knn", folder / "photos", output_dir=tmp_path, **SMALL)
    assert (tmp_path / "results.json").is_file()


def test_a_benchmark_that_cannot_be_reached_is_missing_and_the_others_stay(folder):
    with pytest.warns(UserWarning, match="'food101' cannot be reached"):
        results = singer_hf.evaluate(folder / "student", ["food101", "scenes-classification"], batch_size=6, **SMALL)
    assert list(results.main["student"]) == ["scenes-classification"]
    assert len(results.missing) == 1
    assert "Not evaluated: " in results._repr_html_()
    with pytest.raises(FileNotFoundError, match="'food101' cannot be reached"):
        singer_hf.evaluate(folder / "student", "food101", **SMALL)


def test_an_adapter_by_name_and_a_module_with_it_are_evaluated_as_they_run(folder, processor):
    model = get_peft_model(tiny_model(), SingerConfig(r=2, init_weights="random", init_scale=1.0, gate="none"))
    model.save_pretrained(folder / "cleaned")
    saved = (folder / "student", "knn", folder / "photos")
    by_name = singer_hf.evaluate(*saved, adapter=folder / "cleaned", **SMALL)
    base = AutoModel.from_pretrained(folder / "student")
    module = PeftModel.from_pretrained(base, folder / "cleaned").eval()
    attached = singer_hf.evaluate(module, "knn", folder / "photos", processor=processor, **SMALL)
    assert [(row.model, row.adapter) for row in by_name.results] == [("student + cleaned", "cleaned")]
    assert [(row.model, row.adapter) for row in attached.results] == [("student + adapter", "adapter")]
    assert by_name.results[0].value == attached.results[0].value
    with pytest.raises(ValueError, match="`adapter` goes with one folder or Hub id; give a module with its adapter"):
        singer_hf.evaluate([folder / "student"] * 2, "knn", folder / "photos", adapter=folder / "cleaned")


def test_all_takes_only_what_is_on_this_machine(folder, monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    (tmp_path / "timm___oxford-iiit-pet/default/0.0.0/1").mkdir(parents=True)
    names = {item.name for item in at_hand(select_benchmarks(["all"]))[0]}
    assert names == {"scenes-classification", "scenes-segmentation", "scenes-depth"}
    (tmp_path / "timm___oxford-iiit-pet/default/0.0.0/1/dataset_info.json").touch()
    found, skipped = at_hand(select_benchmarks(["all"], task="knn"))
    assert [item.name for item in found] == ["oxford-pets", "scenes-classification"]
    assert "inat2019: no public copy of its data is known; `dataset_name` can name a folder" in skipped


def test_wrong_arguments_are_refused(folder):
    with pytest.raises(ValueError, match=r"`settings` must be among .* got \['epochs'\]"):
        singer_hf.evaluate(folder / "student", "knn", folder / "photos", epochs=3)
    with pytest.raises(ValueError, match="`dataset` must be given for the task 'knn': a folder"):
        singer_hf.evaluate(folder / "student", "knn")
    with pytest.raises(ValueError, match="`models` must be at least one model, got none"):
        singer_hf.evaluate([], "scenes-classification")
    with pytest.raises(ValueError, match=r"`processor` .* must be given: the model 'ViTModel' has no image processor"):
        singer_hf.evaluate(tiny_model(), "knn", folder / "photos")


def test_the_same_seed_gives_the_same_results(folder, results):
    torch.manual_seed(99)
    assert singer_hf.evaluate(str(folder / "student"), "scenes-classification", batch_size=6, **SMALL) == results
