"""The cells of a comparison: what is shared, what is measured, and that nothing but the settings changes a figure."""

import hashlib
import json
import re
import shutil
import signal
from dataclasses import replace

import pytest
from runs import differing, snapshot, start_script
from tiny_study import METHODS, tiny_study, write_study

from singer_hf.baselines.method_table import make_method
from singer_hf.comparison import cells, runner
from singer_hf.comparison.cell_folder import cell_folder
from singer_hf.comparison.cells import run_cell, run_reference
from singer_hf.comparison.costs import step_costs

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")

QUALITY = {"probe_cls", "probe_mean", "knn"}
LOOKS = {"gram_teacher", "cka_teacher", "gram_clean", "cka_clean", "inheritance_iou", "inherited", "outlier_share"}
PLACES = {
    "artifact_alignment",
    "other_alignment",
    "auroc_norm",
    "auroc_direction",
    "auroc_frequency",
    "class_attention",
}
COSINES = {"cosine_artifacts", "cosine_elsewhere"}
REFINED = {"refined_outlier_ratio", "leakage", "e_prob", "e_safe"}
EVERY_METHOD = {
    "fitnet": {},
    "singer": {"r": 4},
    "calibrated": {"method": "singer", "r": 4, "nullspace_source": "jacobian"},
    "clip_norm": {},
    "neighbor": {"quantile": 0.9},
    "test_time_register": {},
    "mean_outlier": {},
    "local_outlier_factor": {},
    "singular_direction": {},
    "shifted_views": {"num_views": 3},
    "relational": {},
    "vitkd": {},
}
# A teacher without outliers has no register neurons.
IMPOSSIBLE = {"method": "test_time_register", "num_neurons": 1}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    impossible = {**IMPOSSIBLE, "teacher_name_or_path": str(root / "unplanted")}
    return write_study(root, methods={**METHODS, "impossible": impossible})


@pytest.fixture
def straight(file):
    """All cells that can be made, one after the other; made by the first test that asks."""
    study = tiny_study(file, "straight", methods=list(METHODS))
    return study, {cell: run_cell(study, *cell, quiet=True) for cell in study.cells()}


def refuse(message, error=ValueError):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def stop(*args):
    raise KeyboardInterrupt


def not_again(*args, **options):
    raise AssertionError("trained again")


def test_a_cell_says_all_that_is_measured(straight):
    study, results = straight
    assert list(results) == [("fitnet", 0), ("singer", 0), ("fitnet", 1), ("singer", 1)]
    for (method, seed), result in results.items():
        assert (result["method"], result["seed"]) == (method, seed)
        own = REFINED if method == "singer" else set()
        assert set(result["metrics"]) == QUALITY | LOOKS | PLACES | COSINES | {"outlier_ratio"} | own
        assert [point["step"] for point in result["curve"]] == [2, 4]
        assert set(result["curve"][0]) == {"step", "knn_top1"}
        written = json.loads((cell_folder(study, method, seed).path / "result.json").read_text())
        assert written == result
    assert len({json.dumps(result["metrics"]) for result in results.values()}) == 4


def test_a_finished_cell_leaves_the_student_and_no_checkpoint(straight):
    study, _ = straight
    folder = cell_folder(study, "singer", 1).path / "student"
    assert (folder / "model.safetensors").is_file()
    assert (folder / "singer" / "adapter_model.safetensors").is_file()
    assert list(folder.glob("checkpoint-*")) == []


def test_a_reference_is_probed_like_a_student(straight, file):
    study, _ = straight
    result = run_reference(study, "unplanted teacher", study.clean_teacher_name_or_path)
    assert set(result["metrics"]) == QUALITY | PLACES
    assert (file.parent / "straight/references/unplanted_teacher/result.json").is_file()
    assert run_reference(study, "unplanted teacher", study.clean_teacher_name_or_path) == result


def test_methods_with_one_seed_start_from_one_student_and_see_the_same_images(tmp_path, monkeypatch):
    """Over an epoch's end and with evaluations between; what a method draws of itself must not matter."""
    file = write_study(tmp_path, methods=EVERY_METHOD, student_layers=3, max_steps=7, num_evaluations=1)
    seen, prepare = {}, cells.prepare_trainer

    def record(study, method, seed, *args, **options):
        trainer = prepare(study, method, seed, *args, **options)
        batches = []

        def note(module, args):
            if module.training:
                batches.append(hashlib.sha256(args[0].numpy().tobytes()).hexdigest())

        trainer.distiller.register_forward_pre_hook(note)
        seen[method, seed] = (snapshot(trainer.student), snapshot(trainer.distiller.projectors), batches)
        return trainer

    monkeypatch.setattr(cells, "prepare_trainer", record)
    monkeypatch.setattr(cells, "_measure", lambda *args: {})
    study = tiny_study(file, "seen")
    for cell in [*((method, 0) for method in EVERY_METHOD), ("fitnet", 1)]:
        run_cell(study, *cell, quiet=True)
    student, projectors, batches = seen["fitnet", 0]
    assert len(batches) == len(set(batches)) == 7
    for method in EVERY_METHOD:
        assert differing(seen[method, 0][0], student) == set(), method
        assert seen[method, 0][2] == batches, method
        if method != "vitkd":
            assert differing(seen[method, 0][1], projectors) == set(), method
    assert differing(seen["fitnet", 1][0], student)
    assert not set(seen["fitnet", 1][2]) & set(batches)


def checkpoints(study, method, seed):
    return [path.name for path in (cell_folder(study, method, seed).path / "student").glob("checkpoint-*")]


def test_a_cell_killed_in_mid_step_goes_on_and_gives_the_same_figures(straight, file):
    _, results = straight
    process = start_script("killed_cell.py", file, "killed", "singer", 1, 4)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == -signal.SIGKILL, errors
    study = tiny_study(file, "killed", methods=list(METHODS))
    assert checkpoints(study, "singer", 1) == ["checkpoint-2"]
    assert not (cell_folder(study, "singer", 1).path / "result.json").exists()
    assert run_cell(study, "singer", 1, quiet=True) == results["singer", 1]


def test_a_cell_stopped_behind_its_last_step_is_not_trained_on(straight, file, monkeypatch):
    """4 steps of 6 an epoch: taken up within an epoch."""
    _, results = straight
    study = tiny_study(file, "stopped", methods=list(METHODS))
    with monkeypatch.context() as patched:
        patched.setattr(cells, "probe_metrics", stop)
        with pytest.raises(KeyboardInterrupt):
            run_cell(study, "singer", 1, quiet=True)
    assert checkpoints(study, "singer", 1) == ["checkpoint-4"]
    assert not (cell_folder(study, "singer", 1).path / "result.json").exists()
    assert run_cell(study, "singer", 1, quiet=True) == results["singer", 1]


def test_cells_in_another_order_give_the_same_figures(straight, file):
    _, results = straight
    study = tiny_study(file, "backwards", methods=list(METHODS), seeds=[1])
    for cell in study.cells()[::-1]:
        assert run_cell(study, *cell, quiet=True) == results[cell]


def test_two_processes_give_the_same_figures_and_one_cell_that_fails_leaves_the_others(straight, file, monkeypatch):
    _, results = straight
    monkeypatch.setattr(runner.os, "cpu_count", lambda: 2)  # one thread for each
    study = tiny_study(file, "side_by_side", seeds=[0])
    with pytest.raises(RuntimeError, match="must have outliers") as error:
        runner.run_study(study, num_processes=2)
    start = "1 of 5 cells failed; run again to repeat them:\nimpossible, 0: "
    assert str(error.value).startswith(start)
    assert "ValueError: `images` must have outliers after some block, got none" in str(error.value)
    monkeypatch.setattr(cells, "SingerDistillationTrainer", not_again)
    for method in METHODS:
        assert run_cell(study, method, 0) == results[method, 0]
    assert not (file.parent / "side_by_side" / "comparison.json").exists()


def test_a_cell_that_fails_leaves_the_others_in_turn_too(straight, file):
    study = replace(straight[0], methods=tiny_study(file, "straight").methods, seeds=(0,))
    with pytest.raises(RuntimeError, match="must have outliers") as error:
        runner.run_study(study)
    assert str(error.value).startswith("1 of 5 cells failed; run again to repeat them:\nimpossible, 0: Traceback")
    assert not (cell_folder(study, "impossible", 0).path / "result.json").exists()
    assert not (file.parent / "straight" / "comparison.json").exists()


def test_a_finished_cell_is_not_made_again(straight, monkeypatch):
    study, results = straight
    monkeypatch.setattr(cells, "SingerDistillationTrainer", not_again)
    monkeypatch.setattr(cells, "_measure", not_again)
    before = (cell_folder(study, "singer", 0).path / "result.json").stat().st_mtime_ns
    assert run_cell(study, "singer", 0) == results["singer", 0]
    assert (cell_folder(study, "singer", 0).path / "result.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("change", [{"seeds": (1,)}, {"baseline": "singer"}, {"grid": None}])
def test_what_says_nothing_about_a_cell_leaves_it_valid(straight, monkeypatch, change):
    study, results = straight
    monkeypatch.setattr(cells, "SingerDistillationTrainer", not_again)
    assert run_cell(replace(study, **change), "singer", 1) == results["singer", 1]


def other_settings(study, method, seed, differences):
    folder = str(cell_folder(study, method, seed).path)
    return refuse(
        f"{folder!r} was made with other settings of the comparison ({differences}); take another `output_dir`, or "
        "delete that folder to have it made again"
    )


OTHER_SETTINGS = [
    ({"max_steps": 5}, "max_steps: 4, now 5"),
    ({"training": {"seed": 1}}, "training: {'per_device_train_batch_size': 4}, now {'seed': 1}"),
    ({"max_test_samples": 6, "test_split": "train"}, "max_test_samples: None, now 6; test_split: 'test', now 'train'"),
]


@pytest.mark.parametrize(("change", "differences"), OTHER_SETTINGS)
def test_other_settings_in_the_same_folder_are_refused(straight, change, differences):
    study, _ = straight
    with other_settings(study, "singer", 0, differences):
        run_cell(replace(study, **change), "singer", 0)


def test_a_result_without_noted_settings_is_known_by_its_digest(straight, tmp_path, monkeypatch):
    """As earlier versions wrote it."""
    study, results = straight
    monkeypatch.setattr(cells, "SingerDistillationTrainer", not_again)
    moved = replace(study, output_dir=str(tmp_path))
    folder = cell_folder(moved, "singer", 0).path
    folder.mkdir(parents=True)
    shutil.copy(cell_folder(study, "singer", 0).path / "result.json", folder)
    assert run_cell(moved, "singer", 0) == results["singer", 0]
    digests = [cell_folder(s, "singer", 0).digest for s in (study, replace(study, max_steps=5))]
    with other_settings(moved, "singer", 0, f"digest {digests[0]}, now {digests[1]}"):
        run_cell(replace(moved, max_steps=5), "singer", 0)


def test_other_settings_of_the_method_are_refused_too(straight):
    study, _ = straight
    for method in (make_method("singer", {"r": 2}), make_method("fitnet")):
        changed = replace(study.methods["singer"], method=method)
        with pytest.raises(ValueError, match="was made with other settings of the comparison"):
            run_cell(replace(study, methods={"singer": changed}), "singer", 0)


def test_a_teacher_without_an_image_processor_is_refused(straight, file, tmp_path):
    study, _ = straight
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    for name in ("config.json", "model.safetensors"):
        (teacher / name).symlink_to(file.parent / "planted" / name)
    with refuse(f"`teacher_name_or_path` must hold an image processor, got {str(teacher)!r} without one"):
        run_cell(replace(study, teacher_name_or_path=str(teacher), output_dir=str(tmp_path)), "fitnet", 0, quiet=True)


def test_the_cost_of_a_step_is_in_units_of_the_baselines(tmp_path):
    training = {"per_device_train_batch_size": 4, "report_to": "none", "save_steps": 1, "disable_tqdm": True}
    file = write_study(tmp_path, methods=EVERY_METHOD, student_layers=3, training=training)
    costs = step_costs(tiny_study(file, "costs"), num_steps=2, warmup=1)
    assert list(costs) == list(EVERY_METHOD)
    assert costs["fitnet"] == 1.0
    assert all(cost > 0 for cost in costs.values())
    assert step_costs(tiny_study(file, "costs", methods=["singer"])) == {}
