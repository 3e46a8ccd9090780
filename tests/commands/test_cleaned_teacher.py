"""A saved adapter in the commands `distill`, `evaluate`, `audit` and `compare`."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from adapters import attach
from in_process import make_runner
from labelled import saved_model, tiny_model
from noise_images import noise
from peft import PeftModel
from planted import IMAGE, PATCH, planted_adapter, planted_images, planted_vit
from transformers import AutoModel, ViTImageProcessor

from singer_hf.commands import audit as audit_command
from singer_hf.commands import compare, distill, evaluate
from singer_hf.comparison.study import read_study
from singer_hf.evaluation.benchmarks.evaluated_model import EvaluatedModel
from singer_hf.evaluation.evaluate_models import evaluate_models
from singer_hf.evaluation.given_models import given_models
from singer_hf.inspection.measure.audit import audit
from singer_hf.inspection.measure.audit_result import AuditResult

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = ("--num_epochs", 1, "--resamples", 5, "--max_train_samples", 12, "--max_test_samples", 6, "--batch_size", 6)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A working folder with a planted teacher, the adapter that cleans it, a student's config and images."""
    monkeypatch.chdir(tmp_path)
    planted_vit().save_pretrained("teacher")
    ViTImageProcessor(size={"height": IMAGE[0], "width": IMAGE[1]}).save_pretrained("teacher")
    planted_adapter().save_pretrained("outputs/cleaned")
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"image_size": list(IMAGE), "patch_size": PATCH}
    Path("student.json").write_text(json.dumps({"model_type": "vit", **sizes}))
    Path("images").mkdir()
    for index in range(4):
        noise(index, 48).save(f"images/{index}.png")
    return tmp_path


@pytest.fixture
def run_distill(monkeypatch, capsys):
    return make_runner(distill, "distill.py", monkeypatch, capsys)


BASE = ("--teacher_name_or_path", "teacher", "--student_config", "student.json", "--dataset_name", "images")
SHORT = (
    "--output_dir",
    "out",
    "--max_steps",
    2,
    "--use_cpu",
    "--report_to",
    "none",
    "--per_device_train_batch_size",
    2,
)
ADAPTER = ("--adapter_name_or_path", "outputs/cleaned")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("flags", [(), ("--train_adapter", "--outlier_weight", 2), ("--method", "cleaned")])
def test_distilling_a_cleaned_teacher_makes_no_audit_and_leaves_student_and_adapter(flags, run_distill, capsys):
    assert run_distill(*BASE, *SHORT, *ADAPTER, "--teacher_layers", 0, 3, *flags) is None
    fate = "trained on" if "--train_adapter" in flags else "frozen"
    printed = capsys.readouterr().out
    assert printed.startswith(f"no audit: the teacher is refined by the adapter outputs/cleaned, which is {fate}\n")
    assert "audit of the teacher" not in printed
    assert "adapter outputs/cleaned behind block(s) 1, 3, read by all later blocks" in printed
    assert AutoModel.from_pretrained("out").config.hidden_size == 16
    assert "| `adapter` | `outputs/cleaned` |" in Path("out/README.md").read_text()
    saved, given = (
        PeftModel.from_pretrained(planted_vit(), folder).state_dict() for folder in ("out/singer", "outputs/cleaned")
    )
    equal = all(torch.equal(saved[name], value) for name, value in given.items())
    assert equal == (fate == "frozen")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            (*ADAPTER, "--method", "singer"),
            "`--adapter_name_or_path` must be left out with `--method singer`, which takes no trained adapter, got "
            "'outputs/cleaned'",
        ),
        (
            (*ADAPTER, "--method", "fitnet"),
            "`--adapter_name_or_path` must be left out with `--method fitnet`, which takes no trained adapter, got "
            "'outputs/cleaned'",
        ),
        (
            ("--train_adapter",),
            "`--train_adapter` needs `--adapter_name_or_path`, the adapter of a cleaned teacher",
        ),
        (
            ("--method", "cleaned"),
            "`--method cleaned` needs `--adapter_name_or_path`, the adapter of a cleaned teacher",
        ),
        (
            (*ADAPTER, "--rank", 4),
            "`--adapter_name_or_path` without `--train_adapter` does not use `--r`; leave them out",
        ),
        (
            (*ADAPTER, "--train_adapter", "--gate", "none", "--init_scale", 1),
            "`--adapter_name_or_path` does not use `--gate`, `--init_scale`; leave them out",
        ),
        (
            (*ADAPTER, "--outlier_weight", 2, "--info_loss", "gram"),
            "`--adapter_name_or_path` without `--train_adapter` does not use `--info_loss`, `--outlier_weight`; leave "
            "them out",
        ),
        (
            (*ADAPTER, "--train_adapter", "--detach_refined", "true"),
            "`--adapter_name_or_path` does not use `--detach_refined`; leave them out",
        ),
        (
            (*ADAPTER, "--method_settings", '{"train_adapter": true}'),
            "`--method_settings` must be left out with `--method cleaned`, whose settings are flags of their own, got "
            "'{\"train_adapter\": true}'",
        ),
        ((*ADAPTER, "--recipe", "paper"), "`--recipe` has settings of SiNGER; leave it out with `--method cleaned`"),
        (
            (*ADAPTER, "--adapter_warmup_steps", 1),
            "`--adapter_name_or_path` without `--train_adapter` does not use `--adapter_warmup_steps`; leave them out",
        ),
    ],
)
def test_contradicting_flags_are_refused_in_one_line(flags, message, run_distill):
    assert run_distill(*BASE, *SHORT, *flags) == f"error: {message}"


@pytest.mark.usefixtures("files")
def test_blocks_before_the_adapter_and_no_weight_are_refused_before_the_training(run_distill):
    assert run_distill(*BASE, *SHORT, *ADAPTER, "--teacher_layers", 0) == (
        "error: `teacher_layers` must reach the first block with an adapter, 1, or nothing that is distilled is "
        "refined, got [0]"
    )
    assert run_distill(*BASE, *SHORT, *ADAPTER, "--train_adapter", "--outlier_weight", 0) == (
        "error: `outlier_weight` must be greater than 0 to train the adapter, got 0.0; leave `train_adapter` out to "
        "keep it as it is"
    )


def test_a_yaml_file_may_name_the_adapter(files, run_distill):
    settings = {"adapter_name_or_path": "outputs/cleaned", "train_adapter": True, "max_steps": 1}
    (files / "run.yaml").write_text(yaml.safe_dump(settings))
    assert run_distill("run.yaml", *BASE, *SHORT) is None
    assert Path("out/singer/adapter_model.safetensors").is_file()


@pytest.fixture
def evaluated(tmp_path):
    """A saved teacher and two adapters of it."""
    teacher = saved_model(tmp_path / "teacher")
    for name, seed in (("cleaned", 0), ("other", 1)):
        adapted = attach(tiny_model(), layers_to_transform=[-1], init_seed=seed, init_scale=3.0)
        adapted.save_pretrained(tmp_path / name)
    return Path(teacher)


@pytest.fixture
def run_evaluate(monkeypatch, capsys):
    return make_runner(evaluate, "evaluate.py", monkeypatch, capsys)


def rows(folder):
    return json.loads((folder / "results.json").read_text())["results"]


def test_a_model_is_evaluated_with_its_adapter(evaluated, run_evaluate, tmp_path, capsys):
    base = ("--model_name_or_path", evaluated, "--benchmark", "scenes-depth", *SMALL, "--output_dir")
    assert run_evaluate(*base, tmp_path / "bare") is None
    assert run_evaluate(*base, tmp_path / "out", "--adapter_name_or_path", tmp_path / "cleaned") is None
    assert "| teacher + cleaned | " in capsys.readouterr().out
    bare, refined = rows(tmp_path / "bare"), rows(tmp_path / "out")
    assert {(row["model"], row["adapter"]) for row in bare} == {("teacher", "")}
    assert {(row["model"], row["adapter"]) for row in refined} == {("teacher + cleaned", "cleaned")}
    assert [row["value"] for row in bare] != [row["value"] for row in refined]
    (settings,) = evaluate.CommandParser(evaluate.Settings).parse([*map(str, base), str(tmp_path / "python")])
    model = PeftModel.from_pretrained(tiny_model(), tmp_path / "cleaned").eval()
    (loaded,) = given_models([str(evaluated)]).values()
    (benchmark,) = settings.benchmarks()
    models = {"own": EvaluatedModel("own", model.to(loaded.device), loaded.spec)}
    limits = {"max_train_samples": 12, "max_test_samples": 6}
    again = evaluate_models(models, benchmark, settings.run_settings(benchmark), tmp_path / "python", **limits)["own"]
    assert [row["value"] for row in refined] == [result.value for result in again]


def test_caches_of_the_bare_model_and_of_each_adapter_are_kept_apart(evaluated, run_evaluate, tmp_path):
    """All three in one folder, in which a wrong fingerprint would find the features of another."""
    base = ("--model_name_or_path", evaluated, "--benchmark", "scenes-depth", *SMALL, "--output_dir")
    for flags in (
        (),
        ("--adapter_name_or_path", tmp_path / "cleaned"),
        ("--adapter_name_or_path", tmp_path / "other"),
    ):
        assert run_evaluate(*base, tmp_path / "shared", *flags) is None
        name = Path(flags[1]).name if flags else "none"
        assert run_evaluate(*base, tmp_path / name, *flags) is None
        alone = [r["value"] for r in rows(tmp_path / name)]
        assert [r["value"] for r in rows(tmp_path / "shared")][-len(alone) :] == alone  # the others stay above
    values = {json.dumps([r["value"] for r in rows(tmp_path / name)]) for name in ("none", "cleaned", "other")}
    assert len(values) == 3


def test_an_adapter_goes_with_one_evaluated_model_whose_card_is_left_alone(run_evaluate):
    flags = ("--adapter_name_or_path", "a", "--benchmark", "scenes")
    assert run_evaluate("--model_name_or_path", "m", "n", *flags) == (
        "error: `--adapter_name_or_path` goes with one model, got 2 models"
    )
    assert run_evaluate("--model_name_or_path", "m", *flags, "--write_card") == (
        "error: `--write_card` must be left out with `--adapter_name_or_path`: the card is that of the bare model"
    )
    with pytest.raises(ValueError, match="`adapter` goes with one folder or Hub id"):
        given_models(["m", "n"], adapter="a")


@pytest.fixture
def run_audit(monkeypatch, capsys):
    return make_runner(audit_command, "audit.py", monkeypatch, capsys)


@pytest.mark.usefixtures("files")
def test_an_inline_audit_measures_the_model_as_it_runs(run_audit):
    """Block 2 takes its 40 from one patch of each image, although the adapter behind block 1 has removed them."""
    pytest.importorskip("matplotlib")
    base = ("--model_name_or_path", "teacher", "--dataset_name", "images", "--output_dir", "out", "--batch_size", 2)
    assert run_audit(*base, *ADAPTER, "--inline") is None
    (found,) = json.loads(Path("out/audit.json").read_text())["models"]
    result = AuditResult.from_dict(found)
    assert [block.outlier_count for block in result.blocks] == [0, 0, 4, 0]
    assert (result.refined, result.notes) == (
        [],
        ["measured as the model runs: blocks with an adapter are refined, and later ones read that"],
    )
    assert "measured as the model runs: blocks with an adapter are refined" in Path("out/report.html").read_text()
    assert run_audit(*base, *ADAPTER) is None
    (raw,) = json.loads(Path("out/audit.json").read_text())["models"]
    assert [block.outlier_count for block in AuditResult.from_dict(raw).blocks] == [0, 12, 8, 8]
    own = audit(planted_adapter(), planted_images(), inline=True, progress=False)
    assert [block.outlier_count for block in own.blocks] == [0, 0, 5, 0]


def test_an_inline_audit_needs_an_adapter(run_audit):
    assert run_audit("--model_name_or_path", "teacher", "--output_dir", "out", "--inline") == (
        "error: `inline` needs `adapter_name_or_path`: without an adapter every model runs as it is"
    )


@pytest.mark.usefixtures("files")
def test_a_comparison_checks_its_adapters_before_the_first_cell():
    def study(adapter):
        entries = {"teacher_name_or_path": "teacher", "student_config": "student.json", "dataset_name": "images"}
        methods = {"cleaned": {"adapter_name_or_path": adapter}}
        Path("study.yaml").write_text(yaml.safe_dump({**entries, "max_steps": 1, "methods": methods}))
        return read_study("study.yaml")

    compare.check_models(study("outputs/cleaned"))
    attach(tiny_model()).save_pretrained("other")
    with pytest.raises(ValueError, match="the adapter does not fit this model: "):
        compare.check_models(study("other"))
