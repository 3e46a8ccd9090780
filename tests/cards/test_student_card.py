"""The model card: its text, its metadata, and what must never get into it."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hub_storage import card_errors
from huggingface_hub import ModelCard
from transformers import SchedulerType

from singer_hf.cards.hub_metadata import Evaluation, eval_results
from singer_hf.cards.student_card import CardInfo, CardMethod, library_versions, student_card
from singer_hf.version import __version__

SINGER = CardMethod(
    "singer", "with SiNGER ([paper](https://arxiv.org/abs/2509.20986)): an adapter refined its tokens.", "SiNGER"
)
_KNN = ("knn", "CIFAR 10", "top1", 0.5)
FULL = CardInfo(
    method=SINGER,
    student_name="vit-tiny",
    student_class="ViTModel",
    student="WinKawaks/vit-tiny-patch16-224",
    repo_id="someone/vit-tiny-singer",
    teacher="facebook/dinov2-large",
    dataset="ILSVRC/imagenet-1k",
    dataset_revision="49e2ee26",
    num_images=1281167,
    num_steps=250200,
    num_epochs=100.0,
    image_size=224,
    settings={"learning_rate": 1e-3, "r": 32, "num_prefix_tokens": 5},
    layer_pairs=[(17, 8), (23, 11)],
    loss_curve=[{"step": 100 * i, "loss": 8 / (i + 1), "kd_loss": 4 / (i + 1)} for i in range(21)],
    norms={"teacher": 8.1234567, "refined teacher": 1.9, "student": 1.4},
    evaluations=[Evaluation("classification", "ILSVRC/imagenet-1k", "top1", 0.7059, 50000, 0.7019, 0.7099), _KNN],
    loss_figure="figures/losses.png",
    norm_figure="figures/norms.png",
    license="apache-2.0",
    versions={"singer-hf": "0.1.0", "torch": "2.15.0"},
)
EMPTY = CardInfo(versions={})


def headings(card: ModelCard) -> list[str]:
    return [line for line in card.text.splitlines() if line.startswith("#")]


def test_the_whole_card_has_its_sections_in_order() -> None:
    assert headings(student_card(FULL)) == [
        "# vit-tiny distilled from dinov2-large (SiNGER)",
        "## How to load it",
        "## Training",
        "## Losses",
        "## High-norm tokens",
        "## Evaluation",
        "## Limits",
        "## Licence",
        "## Citation",
        "## Versions",
    ]


@pytest.mark.parametrize(
    "sentence",
    [
        "A `ViTModel` that was distilled from [facebook/dinov2-large](https://huggingface.co/facebook/dinov2-large)",
        " with SiNGER ([paper](https://arxiv.org/abs/2509.20986)): an adapter refined its tokens. It started from ",
        "It started from the weights of [WinKawaks/vit-tiny-patch16-224]",
        'AutoModel.from_pretrained("someone/vit-tiny-singer")',
        'AutoImageProcessor.from_pretrained("someone/vit-tiny-singer")',
        "import singer_hf  # without it PEFT raises KeyError: 'SINGER'\nfrom peft import PeftModel\n",
        'PeftModel.from_pretrained(teacher, "someone/vit-tiny-singer", subfolder="singer")',
        "| Data | [ILSVRC/imagenet-1k](https://huggingface.co/datasets/ILSVRC/imagenet-1k) |",
        "| Revision of the data | `49e2ee26` |",
        "| Images | 1281167 |\n| Image size | 224 x 224 |\n| Epochs | 100 |\n| Steps | 250200 |",
        "| Blocks, teacher → student, counted from 0 | 17 → 8, 23 → 11 |",
        "| `learning_rate` | `0.001` |\n| `r` | `32` |\n| `num_prefix_tokens` | `5` |",
        "| step | loss | kd_loss |\n|---|---|---|\n| 0 | 8 | 4 |\n",
        "| 2000 | 0.381 | 0.1905 |\n\n![Losses over the steps](figures/losses.png)",
        "| teacher | 8.123 |\n| refined teacher | 1.9 |\n| student | 1.4 |\n\n"
        "![Norms of the patch tokens](figures/norms.png)",
        "| classification | ILSVRC/imagenet-1k | top1 | 0.7059 | 0.7019 to 0.7099 | 50000 |\n"
        "| knn | CIFAR 10 | top1 | 0.5 |  |  |\n\nNothing else than these metrics was measured.",
        "`apache-2.0`. The teacher and the training data have licences of their own.",
        "title = {{SiNGER}: A Clearer Voice Distills Vision Transformers Further}",
        "author = {Yu, Geunhyeok and Jeong, Sunjae and Choi, Yoonyoung and Kim, Jaeseung and Hwang, Hyoseok}",
        f"  version = {{{__version__}}}\n",
        "singer-hf 0.1.0, torch 2.15.0",
    ],
)
def test_the_whole_card_says(sentence: str) -> None:
    assert sentence in student_card(FULL).text


def test_metadata_comes_back_from_the_file_and_the_hub_finds_no_fault(tmp_path: Path) -> None:
    student_card(FULL).save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert card_errors((tmp_path / "README.md").read_text()) == []
    assert data.base_model == ["facebook/dinov2-large", "WinKawaks/vit-tiny-patch16-224"]
    assert data.base_model_relation == "finetune"
    assert data.datasets == ["ILSVRC/imagenet-1k"]
    assert (data.library_name, data.pipeline_tag, data.license) == (
        "transformers",
        "image-feature-extraction",
        "apache-2.0",
    )
    tags = ["singer-hf", "knowledge-distillation", "vision-transformer", "feature-extraction", "singer"]
    assert data.tags == tags
    assert data.model_name == "vit-tiny-singer"
    assert data.eval_results == eval_results(FULL.evaluations)


def test_an_empty_card_has_no_empty_headings_tables_or_none() -> None:
    card = student_card(EMPTY)
    sections = ["## How to load it", "## Evaluation", "## Limits", "## Licence", "## Citation"]
    assert headings(card) == ["# student", *sections]
    assert "None" not in str(card)
    assert "|" not in card.text
    assert "![" not in card.text
    assert "\n\n\n" not in card.text
    assert "It was not evaluated on any task." in card.text
    assert "model-index" not in card.data.to_dict()


@pytest.mark.parametrize("name", [entry.name for entry in dataclasses.fields(CardInfo)])
def test_any_field_may_be_left_out(name: str) -> None:
    empty = getattr(EMPTY, name)
    card = student_card(dataclasses.replace(FULL, **{name: empty}))
    lines = [line for line in card.text.splitlines() if line]
    pairs = zip(lines, [*lines[1:], "## end"], strict=True)
    assert "None" not in str(card)
    assert not any(first.startswith("## ") and second.startswith("## ") for first, second in pairs)


def test_without_an_adapter_the_card_shows_no_adapter() -> None:
    assert "PeftModel" in student_card(FULL).text
    card = student_card(dataclasses.replace(FULL, has_adapter=False))
    assert "PeftModel" not in card.text
    assert "import singer_hf" not in card.text
    assert card.data.tags[-1] == "singer"


def test_without_a_method_the_sentence_ends_with_the_teacher() -> None:
    card = student_card(dataclasses.replace(FULL, method=None))
    assert "from [facebook/dinov2-large](https://huggingface.co/facebook/dinov2-large). It started from " in card.text
    assert card.data.tags == ["singer-hf", "knowledge-distillation", "vision-transformer", "feature-extraction"]


@pytest.mark.parametrize("has_adapter", [True, False])
def test_the_method_is_named_in_text_and_tag(has_adapter: bool) -> None:
    method = CardMethod("vitkd", "with ViTKD: from https://arxiv.org/abs/2209.02432 and /home/jane/notes.")
    card = student_card(dataclasses.replace(FULL, has_adapter=has_adapter, method=method))
    assert (
        "was distilled from [facebook/dinov2-large](https://huggingface.co/facebook/dinov2-large) with ViTKD: from "
        "https://arxiv.org/abs/2209.02432 and notes. It started from the weights of "
    ) in card.text
    assert "SiNGER ([paper]" not in card.text
    assert card.data.tags[-1] == "vitkd"


def test_a_student_of_drawn_scenes_says_so() -> None:
    sentence = "**It was trained on synthetic drawn scenes, not on photographs: "
    assert sentence in student_card(dataclasses.replace(EMPTY, synthetic_data=True)).text
    assert "synthetic" not in student_card(FULL).text


def test_no_path_token_or_home_of_this_machine_gets_into_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/jane doe")
    token = "hf_" + "a1B2" * 9
    settings = {
        "output_dir": "/home/jane doe/runs/one",
        "hub_token": token,
        "push_to_hub_token": token,
        "note": f"from /home/jane doe/runs/one with {token}",
        "files": ["/mnt/disk/jane/a.parquet", Path("data/b.parquet"), "C:\\Users\\jane\\c.parquet"],
        "lr_scheduler_kwargs": {"file": "~/jane/schedule"},
        "page": "https://example.org/a/b",
        "share": "1/2",
    }
    info = dataclasses.replace(
        FULL, teacher="/home/jane doe/teacher", dataset=str(tmp_path), student="~/jane/start", settings=settings
    )
    card = student_card(dataclasses.replace(info, loss_figure=str(tmp_path / "losses.png")))
    text = str(card)
    assert not [
        word for word in ("jane", "/home", "/mnt", "C:", token, str(tmp_path), str(Path.cwd())) if word in text
    ]
    assert "distilled from the local folder `teacher` with" in card.text
    assert f"| Data | the local folder `{tmp_path.name}` |" in card.text
    assert "It started from the weights of the local folder `start`." in card.text
    assert "| `files` | `['a.parquet', 'b.parquet', 'c.parquet']` |" in card.text
    assert "| `note` | `from one with hf_...` |" in card.text
    assert "| `output_dir` | `one` |\n| `hub_token` | `hf_...` |" in card.text
    assert "| `page` | `https://example.org/a/b` |\n| `share` | `1/2` |" in card.text
    assert 'AutoModel.from_pretrained("path/to/the/teacher")' in card.text
    assert "![Losses over the steps](losses.png)" in card.text
    assert card.data.base_model is None
    assert card.data.datasets is None


@pytest.mark.parametrize("folder", ["/home/jane", "/home/jane/", "~", "~jane", "~/"])
def test_the_home_folder_itself_is_not_named(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/jane")
    card = student_card(dataclasses.replace(EMPTY, dataset=folder))
    assert "| Data | the local folder `folder` |" in card.text


def test_an_account_whose_home_is_the_root_folder_loses_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    settings = {"page": "https://example.org/a/b", "share": "1/2"}
    card = student_card(dataclasses.replace(EMPTY, settings=settings))
    assert "| `page` | `https://example.org/a/b` |\n| `share` | `1/2` |" in card.text


def test_words_are_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = dataclasses.replace(FULL, dataset="drawn scenes")
    assert "| Data | drawn scenes |" in student_card(words).text
    for folder in ("my/drawn scenes", "/data/drawn scenes"):
        text = student_card(dataclasses.replace(FULL, dataset=folder)).text
        assert "| Data | the local folder `drawn scenes` |" in text
    (tmp_path / "drawn scenes").mkdir()
    assert "| Data | the local folder `drawn scenes` |" in student_card(words).text


def test_a_relative_folder_that_looks_like_an_id_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "teacher").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "the local folder `teacher`" in student_card(dataclasses.replace(FULL, teacher="runs/teacher")).text


def test_a_teacher_without_name_is_shown_by_its_class() -> None:
    card = student_card(dataclasses.replace(FULL, teacher="", teacher_class="Dinov2Model"))
    assert "distilled from a `Dinov2Model` with SiNGER" in card.text


def test_a_table_survives_bars_line_breaks_and_missing_components() -> None:
    curve = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "info_loss": np.float32(0.25)}]
    card = student_card(dataclasses.replace(EMPTY, settings={"note": "a|b\nc"}, loss_curve=curve))
    assert "| `note` | `a\\|b c` |" in card.text
    assert "| step | loss | info_loss |\n|---|---|---|\n| 1 | 2 |  |\n| 2 | 1 | 0.25 |" in card.text


def test_a_choice_is_shown_by_its_value() -> None:
    card = student_card(dataclasses.replace(EMPTY, settings={"lr_scheduler_type": SchedulerType.COSINE}))
    assert "| `lr_scheduler_type` | `cosine` |" in card.text


def test_a_repo_id_that_is_a_path_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`repo_id` must be of the form 'user/name', got '/home/jane/out'\."):
        student_card(dataclasses.replace(EMPTY, repo_id="/home/jane/out"))


def test_versions_name_this_package_and_what_is_installed() -> None:
    versions = library_versions()
    assert versions["singer-hf"] == __version__
    assert {"torch", "transformers", "peft", "huggingface_hub"} <= set(versions)


@pytest.mark.parametrize(("target_norm", "named"), [("channel_token", True), ("channel", True), ("token", False)])
def test_the_statistics_of_the_targets_are_named_where_there_are_some(target_norm, named):
    text = str(student_card(dataclasses.replace(FULL, settings={"target_norm": target_norm})))
    assert ("`target_norms` the statistics of the teacher's channels" in text) == named
