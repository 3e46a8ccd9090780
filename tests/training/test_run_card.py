"""The card of a run: which method it names, which settings and losses it shows."""

import io
import logging
import warnings
from unittest.mock import Mock

import pytest
from PIL import Image
from runs import SMALL, make_trainer, small_student
from transformers import ViTConfig, ViTModel
from zoo import tiny_vit

from singer_hf.baselines.cleanups.clip_norm import ClipNormMethod
from singer_hf.baselines.cleanups.register_method import TestTimeRegister
from singer_hf.baselines.vitkd import ViTKD
from singer_hf.cards.licences import license_of, license_warning
from singer_hf.cards.student_card import student_card
from singer_hf.distillation.defaults import OBJECTIVE
from singer_hf.training.logs.closing import closing_lines
from singer_hf.training.run_card import card_info

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


def info_of(tmp_path, **options):
    return card_info(make_trainer(tmp_path, **options), tmp_path)


def vitkd_info(tmp_path, args=None, **settings):
    model = small_student(num_hidden_layers=3)
    return info_of(tmp_path, bare=True, model=model, method=ViTKD(**settings), **(args or {}))


def own_settings(info) -> dict:
    """The settings of the objective that the card shows."""
    names = ("mask_ratio", "generation_weight", "outlier_weight", "info_loss", "quantile", "scope", "adapter r")
    return {name: info.settings[name] for name in names if name in info.settings}


@pytest.mark.parametrize(
    ("options", "tag", "sentence"),
    [
        ({}, "singer", " with SiNGER ([paper](https://arxiv.org/abs/2509.20986)): a low-rank adapter "),
        ({"bare": True}, "fitnet", " by matching features of several blocks (FitNet): the student learned the "),
        (
            {"bare": True, "method": ClipNormMethod()},
            "feature-distillation",
            " by matching features of several blocks: the student learned the teacher's features, whose high-norm "
            "tokens were refined by the method `clip_norm`.",
        ),
        (
            {"bare": True, "method": TestTimeRegister()},
            "feature-distillation",
            "tokens were refined by a test-time register ([paper](https://arxiv.org/abs/2506.08010)), an ",
        ),
        (
            {"bare": True, "method": ViTKD(), "model": small_student(num_hidden_layers=3)},
            "vitkd",
            " with ViTKD ([paper](https://arxiv.org/abs/2209.02432)): the ",
        ),
    ],
    ids=["singer", "fitnet", "clip_norm", "test_time_register", "vitkd"],
)
def test_the_card_names_the_method(tmp_path, options, tag, sentence):
    card = student_card(info_of(tmp_path, **options))
    assert f"was distilled from a `ViTModel`{sentence}" in card.text or sentence in card.text
    assert card.data.tags[-1] == tag


def test_settings_are_shown_where_they_matter(tmp_path):
    args = {"outlier_weight": 0.1, "info_loss": "reference"}
    settings = {"mask_ratio": 0.75, "generation_weight": 0.5}
    assert own_settings(vitkd_info(tmp_path, args, **settings)) == settings
    assert own_settings(vitkd_info(tmp_path)) == {}
    assert own_settings(info_of(tmp_path, **args)) == {**args, "adapter r": 4}
    assert own_settings(info_of(tmp_path, bare=True, **args)) == {}
    clipped = info_of(tmp_path, bare=True, method=ClipNormMethod(quantile=0.5, scope="batch"))
    assert own_settings(clipped) == {"quantile": 0.5, "scope": "batch"}


def test_the_objective_is_shown_with_its_defaults_too_and_other_settings_where_they_differ(tmp_path):
    settings = info_of(tmp_path, learning_rate=0.3).settings
    assert {name: settings[name] for name in OBJECTIVE} == OBJECTIVE
    assert settings["adapter_warmup_steps"] == 0
    assert settings["learning_rate"] == 0.3
    assert not {"student_layers", "teacher_layers", "max_grad_norm", "ema_decay"} & set(settings)
    fitnet = info_of(tmp_path, bare=True, teacher_layers=[0, 3]).settings
    assert set(OBJECTIVE) & set(fitnet) == {"kd_weight", "kd_loss", "target_norm"}
    assert fitnet["teacher_layers"] == [0, 3]


def test_the_loss_table_has_the_generation_term_where_there_is_one(tmp_path):
    row = {"step": 1, "loss": 3.0, "kd_loss": 2.0, "outlier_loss": 0.0, "info_loss": 0.0, "learning_rate": 0.1}
    trainer = make_trainer(tmp_path, teacher_model=tiny_vit())
    trainer.state.log_history = [row, row | {"step": 2, "generation_loss": 20.0}]
    curve = card_info(trainer, tmp_path).loss_curve
    assert [list(point) for point in curve] == [
        ["step", "loss", "kd_loss", "outlier_loss", "info_loss"],
        ["step", "loss", "kd_loss", "outlier_loss", "info_loss", "generation_loss"],
    ]
    assert curve[1]["generation_loss"] == 20.0


def test_the_end_of_a_run_says_what_it_did_where_it_lies_and_what_comes_next(tmp_path):
    trainer = make_trainer(tmp_path / "out", run_facts={"dataset": "my photos"}, model=poolerless_vit())
    trainer.state.global_step = 4
    ratios = {"teacher_outlier_ratio": 8.0, "refined_outlier_ratio": 8.0, "student_outlier_ratio": 1.2}
    trainer.state.log_history = [
        {"step": 2, "loss": 2.5, **ratios},
        {"step": 2, "eval_loss": 1.7, "eval_knn_top1": 0.25},
        {"step": 4, "loss": 1.25, **ratios, "refined_outlier_ratio": 1.5},
        {"step": 4, "eval_loss": 1.5, "eval_knn_top1": 0.4321},
    ]
    folder = tmp_path / "out"
    assert closing_lines(trainer.runs[""]) == [
        "Finished after 4 steps.",
        "                                                      first log   last log",
        "  teacher, p99 / median of the patch norms                 8.00       8.00",
        "  refined teacher, p99 / median of the patch norms         8.00       1.50",
        "  student, p99 / median of the patch norms                 1.20       1.20",
        "  student, knn_top1                                       0.250      0.432",
        "  loss                                                      2.5       1.25",
        f"The student, its card and what the run saved: {folder}",
        "Before you publish it: the card states no licence, so nobody may use the model: set `license`, such as "
        "'apache-2.0'",
        "Next:",
        f'  load      AutoModel.from_pretrained("{folder}", add_pooling_layer=False)',
        f"  audit     singer-hf audit --model_name_or_path {folder} --dataset_name 'my photos' --output_dir "
        f"{folder}/audit",
        f"  evaluate  singer-hf evaluate --model_name_or_path {folder} --task knn --dataset_name LABELLED_IMAGES",
        f'  upload    hf upload USER/NAME {folder} --exclude "checkpoint-*"',
    ]


def poolerless_vit():
    return ViTModel(ViTConfig(**{**SMALL, "hidden_size": 384, "num_attention_heads": 6}), add_pooling_layer=False)


def test_the_title_says_what_the_student_is(tmp_path):
    options = {"model": poolerless_vit(), "run_facts": {"teacher": "facebook/dinov2-large"}}
    card = student_card(info_of(tmp_path, **options))
    assert card.text.lstrip().startswith("# vit-2x384 distilled from dinov2-large (SiNGER)\n")
    info = info_of(tmp_path, bare=True, method=ClipNormMethod(), run_facts={"teacher": str(tmp_path / "teacher")})
    assert student_card(info).text.lstrip().startswith("# deit-2x16 distilled from teacher (clip_norm)\n")


def test_the_licence_is_the_user_s_and_the_teacher_s_is_named(tmp_path):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher/README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    facts = {"run_facts": {"teacher_license": license_of(str(tmp_path / "teacher"))}}
    card = student_card(info_of(tmp_path / "out", **facts, license="apache-2.0"))
    assert card.data.license == "apache-2.0"
    assert "`apache-2.0`. The card of the teacher says `cc-by-nc-4.0`." in card.text
    card = student_card(info_of(tmp_path / "out", **facts))
    assert card.data.license is None
    assert "Not stated by who published this student. The card of the teacher says `cc-by-nc-4.0`." in card.text
    assert license_warning(None, str(tmp_path / "teacher")).endswith("; the teacher's card says 'cc-by-nc-4.0'")
    assert license_warning("mit", str(tmp_path / "teacher")) == license_of("someone/unknown") == license_of(None) == ""
    for text in ("# No metadata\n", "---\nlicense: [\n---\n", "---\n- a\n---\n", "---\nlicense: [mit]\n---\n"):
        (tmp_path / "teacher/README.md").write_text(text)
        assert license_of(str(tmp_path / "teacher")) == ""
    with pytest.raises(ValueError, match=r"`license` must be an identifier of the Hub such as .*, got 'Apache 2.0'"):
        make_trainer(tmp_path / "out", license="Apache 2.0")


def test_only_metrics_of_the_student_as_it_is_are_shown_with_images_and_interval(tmp_path):
    probe = Mock(sizes={"knn_top1": 100})
    trainer = make_trainer(tmp_path, evaluators=[probe], run_facts={"dataset": "photos"})
    trainer.state.log_history = [{"step": 2, "eval_loss": 1.7, "eval_knn_top1": 0.5, "eval_runtime": 3.0}]
    trainer.state.global_step = 4  # resumed from step 2, and not evaluated since
    assert card_info(trainer, tmp_path).evaluations == []
    trainer.loaded_steps = {"": 2}  # the best checkpoint was loaded
    card = student_card(card_info(trainer, tmp_path))
    assert "| classification | photos | knn_top1 | 0.5 | 0.4038 to 0.5962 | 100 |" in card.text
    assert card.text.count("It was not evaluated") == 0
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.dataset_name, result.metric_args["n"]) == ("custom", "photos", 100)


@pytest.mark.parametrize(
    ("model", "expected"),
    [(poolerless_vit, (5, 384)), (small_student, (6, 16)), (lambda: ViTModel(ViTConfig(**SMALL)), (5, 16))],
    ids=["vit", "deit", "vit_with_pooler"],
)
def test_the_snippet_of_the_card_loads_the_student_without_a_warning(tmp_path, model, expected):
    trainer = make_trainer(tmp_path / "run", model=model())
    trainer.save_model(tmp_path / "out")
    code = (tmp_path / "out/README.md").read_text().split("```python\n")[1].split("```")[0]
    names = {"image": Image.new("RGB", (40, 40))}
    log = logging.StreamHandler(io.StringIO())
    logging.getLogger("transformers").addHandler(log)
    try:
        with warnings.catch_warnings(action="error"):
            exec(code.replace("path/to/this/folder", str(tmp_path / "out")), names)
    finally:
        logging.getLogger("transformers").removeHandler(log)
    assert log.stream.getvalue() == ""
    assert names["features"].shape == (1, *expected)
