"""What a comparison's YAML file must not hold is refused with its name, before anything runs."""

import re

import pytest

from singer_hf.comparison.study import read_study

BASE = "teacher_name_or_path: t\nstudent_config: s\ndataset_name: d\nmax_steps: 4\nmethods: {fitnet: }\n"
WITHOUT_METHODS = BASE.partition("methods")[0]
UNUSED = "leave the name out to use the default"
FORM = "lines of the form `name: value`"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "study.yaml"


WRONG = {
    "empty": ("", f"FILE must have {FORM}, got nothing"),
    "list": ("- fitnet\n", f"FILE must have {FORM}, got a list"),
    "text": ("fitnet\n", f"FILE must have {FORM}, got a str"),
    "name twice": (
        BASE + "max_steps: 5\n",
        "FILE is not valid YAML: `max_steps` stands in line 4 and again in line 6",
    ),
    "method twice": (
        WITHOUT_METHODS + "methods:\n  fitnet: {}\n  fitnet: {kd_weight: 2}\n",
        "FILE is not valid YAML: `fitnet` stands in line 6 and again in line 7",
    ),
    "setting twice in one line": (
        WITHOUT_METHODS + "methods: {singer: {r: 4, r: 8}}\n",
        "FILE is not valid YAML: `r` stands in line 5 and again in line 5",
    ),
    "required name without a value": (
        BASE.replace(" 4", "").replace(" t\n", "\n"),
        "FILE must have teacher_name_or_path, max_steps",
    ),
    "seeds without a value": (BASE + "seeds:\n", f"`seeds` must be a list, got None; {UNUSED}"),
    "one seed": (BASE + "seeds: 3\n", "`seeds` must be a list, got 3"),
    "names as seeds": (BASE + "seeds: [a]\n", "`seeds` must be different whole numbers, got ['a']"),
    "number as text": (BASE.replace("4", "four"), "`max_steps` must be a whole number, got 'four'"),
    "truth as number": (BASE.replace("4", "yes"), "`max_steps` must be a whole number, got True"),
    "number without a value": (
        BASE + "max_probe_samples: null\n",
        f"`max_probe_samples` must be a whole number, got None; {UNUSED}",
    ),
    "folder without a value": (BASE + "output_dir: ~\n", f"`output_dir` must be a text, got None; {UNUSED}"),
    "training as a list": (BASE + "training: [bf16]\n", f"`training` must be {FORM}, got ['bf16']"),
    "training without a value": (
        BASE + "training: {learning_rate: }\n",
        f"`training`: `learning_rate` must have a value, got None; {UNUSED}",
    ),
    "methods as a list": (WITHOUT_METHODS + "methods: [fitnet]\n", f"`methods` must be {FORM}, got ['fitnet']"),
    "method as a number": (WITHOUT_METHODS + "methods: {fitnet: 1}\n", f"`fitnet` must be {FORM}, got 1"),
    "setting without a value": (
        WITHOUT_METHODS + "methods: {fitnet: {kd_weight: }}\n",
        f"'fitnet': `kd_weight` must have a value, got None; {UNUSED}",
    ),
    "grid as a list": (BASE + "grid: [1]\n", f"`grid` must be {FORM}, got [1]"),
    "grid without a value": (
        BASE + "grid: {r: [null], init_scale: [1]}\n",
        f"'r=None, init_scale=1': `r` must have a value, got None; {UNUSED}",
    ),
    "benchmark as a text": (BASE + "benchmarks: [scenes]\n", f"`benchmarks` must be {FORM}, got 'scenes'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused_with_the_name(file, case):
    text, message = WRONG[case]
    file.write_text(text)
    with pytest.raises(ValueError, match=f"^{re.escape(message.replace('FILE', repr(str(file))))}$"):
        read_study(file)


def test_an_unknown_benchmark_is_refused_before_the_training(file):
    file.write_text(BASE + "benchmarks: [{name: cifar}]\n")
    with pytest.raises(ValueError, match=r"^`benchmark` must be one of \['DS', .*, got 'cifar'$"):
        read_study(file)


def test_a_value_may_be_missing_where_that_means_something(file):
    file.write_text(BASE + "max_train_samples: null\nclean_teacher_name_or_path:\ngrid:\n")
    study = read_study(file)
    assert (study.max_train_samples, study.clean_teacher_name_or_path, study.grid) == (None, None, None)
    assert list(study.methods) == ["fitnet"]
