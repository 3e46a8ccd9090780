"""A comparison's YAML file: what it may say, what a method may set, and what is refused with which words."""

import re
from dataclasses import fields

import pytest
import yaml

from singer_hf.baselines.method_table import METHODS as KINDS
from singer_hf.baselines.method_table import make_method
from singer_hf.baselines.recipes import recipe_settings
from singer_hf.comparison.cell_folder import cell_folder
from singer_hf.comparison.study import Study, StudyMethod, grid_name, read_study
from singer_hf.training.arguments import SingerTrainingArguments

BASE = {"teacher_name_or_path": "teacher", "student_config": "student.json", "dataset_name": "images", "max_steps": 10}
METHODS = {"fitnet": {}, "paper": {"method": "singer", "recipe": "paper", "r": 8}}
GRID = {"base": {"recipe": "paper", "r": 8}, "init_scale": [1, -1], "info_weight": [0, 0.5, 1]}


@pytest.fixture
def read(tmp_path):
    """Reads a study of these entries; `overrides` are those of `read_study`."""
    file = tmp_path / "study.yaml"

    def read(entries, **overrides):
        file.write_text(yaml.safe_dump(entries, sort_keys=False))
        return read_study(file, **overrides)

    read.file = file
    return read


def refuse(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def test_a_short_study_has_the_documented_defaults(read):
    study = read({**BASE, "methods": METHODS})
    assert (study.teacher_name_or_path, study.student_config, study.max_steps) == ("teacher", "student.json", 10)
    assert (study.seeds, study.baseline, study.grid, study.benchmarks) == ((0, 1, 2), "fitnet", None, ())
    assert list(study.methods) == ["fitnet", "paper"]
    assert study.methods["fitnet"] == StudyMethod("fitnet", make_method("fitnet"))
    assert study.training == {}


def test_cells_come_seed_by_seed_and_have_folders_of_their_own(read):
    study = read({**BASE, "methods": METHODS, "seeds": [3, 1], "output_dir": "out"})
    assert study.cells() == [("fitnet", 3), ("paper", 3), ("fitnet", 1), ("paper", 1)]
    assert cell_folder(study, "paper", 3).path.as_posix() == "out/cells/paper/seed3"


def test_overrides_win_over_the_file_and_none_leaves_it(read):
    study = read({**BASE, "methods": METHODS, "seeds": [5]}, max_steps=2, seeds=[7, 8], output_dir=None)
    assert (study.max_steps, study.seeds, study.output_dir) == (2, (7, 8), "outputs/comparison")


def test_some_of_the_methods_in_the_order_asked_for(read):
    assert list(read({**BASE, "methods": METHODS}, methods=["paper", "fitnet"]).methods) == ["paper", "fitnet"]
    assert list(read({**BASE, "methods": METHODS}, methods=["paper"]).methods) == ["paper"]
    with refuse("`methods` must be some of ['fitnet', 'paper'], got ['magic']"):
        read({**BASE, "methods": METHODS}, methods=["paper", "magic"])


def test_an_unknown_name_is_refused_with_those_that_are_known(read):
    known = sorted(item.name for item in fields(Study))
    with refuse(f"{str(read.file)!r} has unknown names ['epochs', 'lr']; known are {known}"):
        read({**BASE, "methods": METHODS, "lr": 1, "epochs": 3})


def test_what_must_be_said_is_asked_for(read):
    with refuse(f"{str(read.file)!r} must have student_config, max_steps"):
        read({"teacher_name_or_path": "t", "dataset_name": "d", "methods": METHODS})
    read.file.write_text("# nothing yet\n")
    with refuse(f"{str(read.file)!r} must have lines of the form `name: value`, got nothing"):
        read_study(read.file)


@pytest.mark.parametrize("missing", [{}, {"methods": None}, {"methods": {}}])
def test_there_must_be_a_method(read, missing):
    with refuse("`methods` must name at least one method"):
        read({**BASE, **missing})


@pytest.mark.parametrize("seeds", [[0, 1, 0], []])
def test_seeds_must_differ(read, seeds):
    with refuse(f"`seeds` must be different whole numbers, got {seeds}"):
        read({**BASE, "methods": METHODS, "seeds": seeds})


@pytest.mark.parametrize("max_steps", [0, -1])
def test_there_must_be_a_step(read, max_steps):
    with refuse(f"`max_steps` must be at least 1, got {max_steps}"):
        read({**BASE, "methods": METHODS, "max_steps": max_steps})


@pytest.mark.parametrize("name", ["a/b", ".", ".."])
def test_a_methods_name_must_do_as_a_folder(read, name):
    with refuse(f"names of methods are names of folders too, got {name!r}"):
        read({**BASE, "methods": {name: {"method": "fitnet"}}})


def test_training_holds_arguments_that_are_not_the_studys_own(read):
    training = {"learning_rate": 0.01, "per_device_train_batch_size": 8}
    assert read({**BASE, "methods": METHODS, "training": training}).training == training
    with refuse(
        "`training` must hold fields of SingerTrainingArguments other than seed, output_dir, run_name, max_steps, "
        "num_train_epochs, got ['batch_size', 'seed']"
    ):
        read({**BASE, "methods": METHODS, "training": {"seed": 1, "batch_size": 8}})


@pytest.mark.parametrize(
    ("name", "entry", "method", "training"),
    [
        ("fitnet", None, make_method("fitnet"), {}),
        ("mine", {"method": "fitnet", "kd_weight": 2}, make_method("fitnet"), {"kd_weight": 2}),
        ("singer", {"r": 4, "info_weight": 0}, make_method("singer", {"r": 4}), {"info_weight": 0}),
        ("clip_norm", {"quantile": 0.9}, make_method("clip_norm", {"quantile": 0.9}), {}),
        ("neighbor", {"mad_factor": 5}, make_method("neighbor", {"mad_factor": 5}), {}),
        ("test_time_register", {"num_neurons": 2}, make_method("test_time_register", {"num_neurons": 2}), {}),
        ("mean_outlier", {"scope": "batch"}, make_method("mean_outlier", {"scope": "batch"}), {}),
        ("local_outlier_factor", {"share": 0.1}, make_method("local_outlier_factor", {"share": 0.1}), {}),
        ("singular_direction", {"sigma": 3}, make_method("singular_direction", {"sigma": 3}), {}),
        (
            "shifted_views",
            {"num_views": 4, "seed": 1, "flips": False},
            make_method("shifted_views", {"num_views": 4, "seed": 1, "flips": False}),
            {},
        ),
        (
            "relational",
            {"relational_weight": 2, "kd_weight": 0},
            make_method("relational", {"relational_weight": 2}),
            {"kd_weight": 0},
        ),
        (
            "vitkd",
            {"mask_ratio": 0.7, "teacher_layers": [0, 1], "learning_rate": 0.1},
            make_method("vitkd", {"mask_ratio": 0.7}),
            {"teacher_layers": [0, 1], "learning_rate": 0.1},
        ),
    ],
)
def test_a_methods_settings_go_where_they_belong(name, entry, method, training):
    assert StudyMethod.parse(name, entry) == StudyMethod(name, method, training, None)


def test_a_method_may_have_a_teacher_of_its_own():
    method = StudyMethod.parse("registers", {"method": "fitnet", "teacher_name_or_path": "with_registers"})
    assert method == StudyMethod("registers", make_method("fitnet"), {}, "with_registers")


def test_training_fields_are_fields_of_the_trainers_arguments():
    known = {item.name for item in fields(SingerTrainingArguments)}
    for method in KINDS.values():
        assert {*method.objective_fields, *method.training_fields} <= known


def test_settings_win_over_their_recipe():
    method = StudyMethod.parse(
        "mine", {"method": "singer", "recipe": "paper", "r": 8, "init_scale": -1, "kd_weight": 3}
    )
    paper = recipe_settings("paper")
    adapter = {name: paper.pop(name) for name in ("init_weights", "nullspace_source", "gate")}
    del paper["init_scale"]
    assert method.method.adapter == {**adapter, "r": 8, "init_scale": -1}
    assert method.training == {**paper, "kd_weight": 3}


def test_a_recipe_that_is_not_there_is_refused():
    with refuse("'singer': `recipe` must be one of 'paper', 'reference', 'recommended', got 'best'"):
        StudyMethod.parse("singer", {"recipe": "best"})


def test_a_method_that_is_not_there_is_refused():
    kinds = (
        "singer, cleaned, fitnet, vitkd, relational, test_time_register, clip_norm, neighbor, mean_outlier, "
        "local_outlier_factor, singular_direction, shifted_views"
    )
    with refuse(f"'mine': `method` must be one of {kinds}, got 'mine'"):
        StudyMethod.parse("mine", {"r": 4})
    with refuse(f"'mine': `method` must be one of {kinds}, got 'magic'"):
        StudyMethod.parse("mine", {"method": "magic"})


@pytest.mark.parametrize(
    ("entry", "unknown", "known"),
    [
        ({"method": "fitnet", "r": 4}, ["r"], []),
        (
            {"method": "clip_norm", "quantil": 0.9, "info_weight": 1},
            ["info_weight", "quantil"],
            ["mad_factor", "quantile", "scope"],
        ),
        (
            {"method": "test_time_register", "quantile": 0.9},
            ["quantile"],
            ["num_neurons", "outlier_block", "sigma"],
        ),
        (
            {"method": "vitkd", "init_scale": 1},
            ["init_scale"],
            ["generation_weight", "mask_ratio"],
        ),
    ],
)
def test_a_setting_that_a_method_does_not_take_is_refused(entry, unknown, known):
    of_all = ["kd_weight", "teacher_layers", "student_layers", "learning_rate", "adam_beta2", "max_grad_norm"]
    of_most = [] if entry["method"] == "vitkd" else ["kd_loss", "target_norm"]
    known = sorted([*known, *of_all, *of_most])
    with refuse(f"'mine': {entry['method']} does not take the settings {unknown}; it takes {known}"):
        StudyMethod.parse("mine", entry)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"method": "neighbor", "scope": "dataset"}, "`scope` must be one of 'image', 'batch', got 'dataset'"),
        ({"method": "neighbor", "mad_factor": 0}, "`mad_factor` must be greater than 0, got 0"),
        (
            {"method": "clip_norm", "quantile": 0.9, "mad_factor": 5},
            "`quantile` and `mad_factor` must not both be given, got 0.9 and 5; drop one",
        ),
        ({"method": "test_time_register", "num_neurons": 0}, "`num_neurons` must be at least 1, got 0"),
        ({"method": "singer", "r": 0}, "`r` must be an integer of at least 1, got 0"),
        ({"method": "singer", "outlier_quantile": 1.5}, "`outlier_quantile` must lie in (0, 1), got 1.5"),
        ({"method": "vitkd", "mask_ratio": 1}, "`mask_ratio` must lie in (0, 1), got 1"),
        (
            {"method": "singer", "kd_weight": "1e-3"},
            "`kd_weight` is the text '1e-3' to YAML; write it with a point, as in 1.0e-3",
        ),
    ],
)
def test_a_value_out_of_range_is_refused_when_the_file_is_read(read, entry, message):
    with refuse(f"'mine': {message}"):
        read({**BASE, "methods": {"fitnet": {}, "mine": entry}})


def test_a_training_setting_that_yaml_reads_as_text_is_refused(read):
    read.file.write_text(yaml.safe_dump({**BASE, "methods": METHODS}) + "training: {learning_rate: 1e-3}\n")
    with refuse("`training`: `learning_rate` is the text '1e-3' to YAML; write it with a point, as in 1.0e-3"):
        read_study(read.file)


def test_singer_says_its_blocks_by_the_adapter():
    with pytest.raises(ValueError, match=r"^'singer': singer does not take the settings \['teacher_layers'\]; "):
        StudyMethod.parse("singer", {"teacher_layers": [1]})


def test_a_grid_is_a_method_for_every_pair_of_values(read):
    study = read({**BASE, "methods": {"fitnet": {}}, "grid": GRID})
    assert list(study.methods) == [
        "fitnet",
        "init_scale=1, info_weight=0",
        "init_scale=1, info_weight=0.5",
        "init_scale=1, info_weight=1",
        "init_scale=-1, info_weight=0",
        "init_scale=-1, info_weight=0.5",
        "init_scale=-1, info_weight=1",
    ]
    assert study.grid == (("init_scale", (1, -1)), ("info_weight", (0, 0.5, 1)))
    point = study.methods["init_scale=-1, info_weight=0.5"]
    adapter = point.method.adapter
    assert (point.method.name, adapter["r"], adapter["init_scale"]) == ("singer", 8, -1)
    assert (point.training["info_weight"], point.training["outlier_weight"]) == (0.5, 0.01)


def test_a_grid_needs_no_other_methods_and_may_sweep_another_one(read):
    study = read({**BASE, "grid": {"base": {"method": "vitkd"}, "mask_ratio": [0.3, 0.5], "kd_weight": [1]}})
    assert {name: (item.method.mask_ratio, item.training) for name, item in study.methods.items()} == {
        "mask_ratio=0.3, kd_weight=1": (0.3, {"kd_weight": 1}),
        "mask_ratio=0.5, kd_weight=1": (0.5, {"kd_weight": 1}),
    }
    assert grid_name(("mask_ratio", "kd_weight"), (0.3, 1)) in study.methods


@pytest.mark.parametrize("names", [["r"], ["r", "init_scale", "info_weight"]])
def test_a_grid_has_two_axes(read, names):
    with refuse(f"`grid` must sweep two settings beside `base`, got {names}"):
        read({**BASE, "grid": {"base": {}, **{name: [1, 2] for name in names}}})


def test_a_grid_sweeps_lists_of_values(read):
    with refuse("`grid` must give a list of values for 'r', got 4"):
        read({**BASE, "grid": {"r": 4, "init_scale": [1, -1]}})
