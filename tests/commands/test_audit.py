import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from peft import get_peft_model
from PIL import Image
from planted import GRID, planted_vit
from safetensors.torch import save_file
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor
from zoo import SIZES, tiny_vit

from singer_hf import SingerConfig
from singer_hf.commands import audit as audit_command
from singer_hf.data.drawn_scenes import scene_dataset
from singer_hf.inspection.images import load_images
from singer_hf.inspection.inputs import AuditOptions
from singer_hf.inspection.measure.audit_result import AuditResult
from singer_hf.inspection.models import labels_of, load_models

pytest.importorskip("matplotlib")

SCRIPT = Path(__file__).parents[2] / "examples" / "audit.py"
FIGURES = ["components.png", "norm_histograms.png", "norm_maps.png", "outlier_positions.png", "outlier_shares.png"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A planted teacher, its adapter, a student of another size with projectors, a classifier, and photos."""
    folder = tmp_path_factory.mktemp("files")
    processor = ViTImageProcessor(size={"height": 32, "width": 48}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    student = tiny_vit(2, hidden_size=16, image_size=(32, 48), patch_size=16)
    classifier = ViTForImageClassification(ViTConfig(**{**SIZES, "image_size": (32, 48)}, num_labels=3))
    for name, model in {"teacher": planted_vit(), "student": student, "classifier": classifier}.items():
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    tiny_vit(2).save_pretrained(folder / "bare")
    config = SingerConfig(r=2, layers_to_transform=[1, 3], init_weights="random", gate="none")
    get_peft_model(planted_vit(), config).save_pretrained(folder / "adapter")
    get_peft_model(tiny_vit(hidden_size=16), config).save_pretrained(folder / "other_adapter")
    (folder / "student" / "projectors").mkdir()
    save_file(nn.ModuleDict({"3": nn.Linear(16, 32)}).state_dict(), folder / "student/projectors/model.safetensors")
    photos = folder / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for index in range(5):
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(photos / f"{index}.png")
    (photos / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def run(files, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def call(*models, **flags):
        flags = {
            "dataset_name": files / "photos",
            "output_dir": tmp_path / "out",
            "batch_size": 2,
            "num_pictures": 1,
        } | flags
        arguments = ["--model_name_or_path", *(str(files / model) for model in models)]
        for name, value in flags.items():
            if value is not None:
                arguments += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        audit_command.main()
        return Path(flags["output_dir"])

    return call


def _models(folder):
    return [AuditResult.from_dict(model) for model in json.loads((folder / "audit.json").read_text())["models"]]


def test_one_model_gives_metrics_figures_and_a_page(run, capsys):
    folder = run("teacher")
    (result,) = _models(folder)
    assert (result.name, result.num_images, result.grid) == ("teacher", 5, GRID)
    assert [block.outlier_count for block in result.blocks] == [0, 15, 10, 10]
    expected = [*FIGURES, "quantiles.png", "similarity.png"]
    assert sorted(file.name for file in (folder / "figures").iterdir()) == sorted(expected)
    page = (folder / "report.html").read_text()
    assert "5 images of photos, seed 0" in page
    headline = "teacher has artifacts: high-norm patch tokens that would dominate a feature loss."
    assert capsys.readouterr().out.splitlines() == [headline, f"See {folder / 'report.html'}"]
    # Unreadable images are counted and named.
    assert len(result.notes) == 1
    assert result.notes[0].startswith("1 unreadable images left out: ")
    assert "broken.png (UnidentifiedImageError" in result.notes[0]
    assert "broken.png" in page


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_adds_refined_features_and_its_null_space(run, files):
    (result,) = _models(folder := run("teacher", adapter_name_or_path=files / "adapter"))
    assert [block.block for block in result.refined] == [1, 3]
    assert [block["r"] for block in result.adapter["blocks"]] == [2, 2]
    assert (folder / "figures" / "spectrum_block_3.png").is_file()
    assert "Adapter and null space" in (folder / "report.html").read_text()


def test_several_models_are_compared_with_the_first(run):
    folder = run("teacher", "student", max_samples=3)
    assert [result.name for result in _models(folder)] == ["teacher", "student"]
    comparisons = json.loads((folder / "audit.json").read_text())["comparisons"]
    assert list(comparisons) == ["student compared with teacher"]
    last = comparisons["student compared with teacher"][-1]
    assert (last["teacher_block"], last["student_block"]) == (3, 1)
    assert -1 <= last["cosine"] <= 1  # through the projector in the student's folder
    assert (folder / "figures" / "2_norm_maps.png").is_file()


@pytest.mark.parametrize("is_folder", [True, False])
def test_the_sample_is_drawn_by_the_seed(files, is_folder):
    def sample(seed):
        images = str(files / "photos") if is_folder else scene_dataset(9)
        rows = load_images(images, AuditOptions(max_samples=3, seed=seed))
        return [row["image"]["bytes"] or row["image"]["path"] for row in rows]

    assert len(sample(1)) == 3
    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_a_classifier_is_loaded_with_its_head(files):
    (entry,) = load_models(files / "classifier", None, "cpu")
    assert isinstance(entry.model, ViTForImageClassification)


def test_images_may_have_a_size_and_a_processor_of_their_own(run, files):
    flags = {"processor_name_or_path": files / "teacher", "image_size": [64, 48], "max_samples": 3}
    (result,) = _models(run("bare", **flags))
    assert (result.image_size, result.grid) == ((64, 48), (8, 6))


def test_a_yaml_file_stands_in_for_flags_and_scenes_for_a_dataset(files, tmp_path, monkeypatch):
    settings = {
        "model_name_or_path": [str(files / "student")],
        "output_dir": str(tmp_path / "out"),
        "max_samples": 3,
        "demo": True,
    }
    (tmp_path / "audit.yaml").write_text(json.dumps(settings))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path / "audit.yaml")])
    audit_command.main()
    assert "3 images of drawn scenes, seed 0" in (tmp_path / "out" / "report.html").read_text()


@pytest.fixture
def refused(run, capsys):
    """Runs the command and returns its error message, the last line of what it printed."""

    def call(*models, **flags):
        with pytest.raises(SystemExit) as caught:
            run(*models, **flags)
        assert caught.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return call


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_another_model_is_refused(refused, files):
    message = refused("teacher", adapter_name_or_path=files / "other_adapter")
    assert message.startswith("error: the adapter does not fit this model: ")
    assert message.endswith("it was trained on a teacher of another hidden size")


def test_an_adapter_goes_with_one_model(refused, files):
    message = refused("teacher", "student", adapter_name_or_path=files / "adapter")
    assert message == "error: `adapter_name_or_path` goes with one model, got 2 models"


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(refused, tmp_path):
    (tmp_path / "file").write_text("")
    message = refused("no_such_model", output_dir=tmp_path / "file")
    assert message.startswith(f"error: `output_dir` must be a folder that can be written, got '{tmp_path / 'file'}'")


def test_a_missing_model_is_named(refused, files):
    message = refused("no_such_model")
    assert message.startswith("error: `model_name_or_path` must be a module, a local folder with config.json")


def test_a_folder_without_images_is_refused(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    message = refused("teacher", dataset_name=tmp_path / "empty")
    assert message.startswith("error: `dataset_name` must hold images, parquet or arrow files, got ")


def test_a_folder_of_unreadable_images_is_refused_with_their_names(refused, tmp_path):
    (tmp_path / "bad").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "bad" / name).write_bytes(b"no picture")
    message = refused("teacher", dataset_name=tmp_path / "bad")
    assert message.startswith("error: none of the 2 images can be read: ")
    assert "a.png (UnidentifiedImageError" in message


def test_a_model_without_an_image_processor_is_refused(refused, files):
    message = refused("bare")
    assert message == (
        "error: `processor` (`--processor_name_or_path`) must be given: the model 'bare' has no image processor"
    )


def test_a_model_is_not_judged_on_drawn_scenes_unless_asked(refused):
    assert refused("teacher", dataset_name=None) == (
        "error: `dataset_name` must name images such as the model will see (folder, parquet file or Hub id): the "
        "verdict holds for images like the audited ones; `--demo` takes drawn scenes"
    )
    message = refused("teacher", demo=True)
    assert message.startswith("error: `demo` draws its own images; leave out `dataset_name`, got '")


def test_an_image_size_has_two_numbers(refused):
    assert refused("teacher", image_size=[32]) == "error: `image_size` must be a height and a width, got [32]"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_pictures": 0}, "`num_pictures` must be at least 1, got 0"),
        ({"max_samples": 0}, "`max_samples` must be at least 1, got 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"num_workers": -1}, "`num_workers` must be at least 0, got -1"),
        ({"mad_factor": 0}, "`mad_factor` must be greater than 0, got 0.0"),
        ({"image_size": [0, 32]}, "`image_size` must be a height and a width, got [0, 32]"),
        ({"device": "tape"}, "`device` must be a device of torch, got 'tape': "),
    ],
)
def test_numbers_out_of_their_range_are_refused(refused, flags, message):
    assert refused("teacher", **flags).startswith(f"error: {message}")


def test_images_of_a_size_that_the_model_does_not_take_are_refused(refused):
    message = refused("teacher", image_size=[1, 1])
    patch = "`image_size` must suit the model 'teacher' with its patches of 8 x 8 pixels, got images of 1 x 1 pixels: "
    assert message.startswith(f"error: {patch}")


def test_an_adapter_whose_file_is_cut_is_refused(refused, files, tmp_path):
    shutil.copytree(files / "adapter", tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    message = refused("teacher", adapter_name_or_path=tmp_path / "adapter")
    assert message.startswith("error: `adapter_name_or_path` must hold the whole adapter, its weights in ")


def test_a_model_whose_file_is_cut_is_refused(refused, files, tmp_path):
    shutil.copytree(files / "teacher", tmp_path / "teacher")
    weights = tmp_path / "teacher" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    assert refused(tmp_path / "teacher").startswith("error: SafetensorError: ")


@pytest.mark.filterwarnings("ignore")
def test_no_file_of_an_audit_names_a_folder(run, files, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(files / "teacher", tmp_path / "jane-doe" / name / "teacher")
    shutil.copytree(files / "photos", tmp_path / "jane-doe" / "photos")
    models = [tmp_path / "jane-doe" / name / "teacher" for name in ("one", "two")]
    folder = run(*models, dataset_name=tmp_path / "jane-doe" / "photos")
    for name in ("audit.json", "report.html"):
        text = (folder / name).read_text()
        assert "jane-doe" not in text
        assert str(tmp_path) not in text
    assert [result.name for result in _models(folder)] == ["teacher (1)", "teacher (2)"]
    assert "broken.png (UnidentifiedImageError" in _models(folder)[0].notes[0]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["a/teacher", "/b/student"], ["teacher", "student"]),
        (["a/x", "b/x"], ["a/x", "b/x"]),
        (["/a/x", "/b/x", "/c/y"], ["x (1)", "x (2)", "y"]),
    ],
)
def test_models_have_different_labels(names, labels):
    assert labels_of(names) == labels
