"""YAML files of settings: what is read and what is refused."""

import re

import pytest

from singer_hf.data.yaml_file import load_yaml


def test_names_may_repeat_in_other_places(tmp_path):
    (tmp_path / "run.yaml").write_text("a: {b: 1}\nb: [{a: 1}, {a: 2}]\n")
    assert load_yaml(tmp_path / "run.yaml") == {"a": {"b": 1}, "b": [{"a": 1}, {"a": 2}]}


def test_names_values_lists_and_merged_mappings_are_read(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("a: 1\nb: [x, y]\nc: null\nd: &d {e: 1.5, f: 2}\ng: {<<: *d, f: 3}\n")
    expected = {"a": 1, "b": ["x", "y"], "c": None, "d": {"e": 1.5, "f": 2}, "g": {"e": 1.5, "f": 3}}
    assert load_yaml(file) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have lines of the form `name: value`, got nothing"),
        ("# a comment\n", "must have lines of the form `name: value`, got nothing"),
        ("- a\n- b\n", "must have lines of the form `name: value`, got a list"),
        ("a word\n", "must have lines of the form `name: value`, got a str"),
        ("a: 1\nb: 2\na: 3\n", "is not valid YAML: `a` stands in line 1 and again in line 3"),
        ("a:\n  b: 1\n  b: 1\n", "is not valid YAML: `b` stands in line 2 and again in line 3"),
        ("a: {b: 1, b: 1}\n", "is not valid YAML: `b` stands in line 1 and again in line 1"),
        ("a: [{b: 1}, {c: 1, c: 1}]\n", "is not valid YAML: `c` stands in line 1 and again in line 1"),
        ("a: [1\n", "is not valid YAML: "),
        ("a: !!python/object/apply:os.getcwd []\n", "is not valid YAML: "),
        ("on: 1\n", "must have names that are text, got [True]; put them in quotes"),
    ],
)
def test_other_files_are_refused(text, message, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"{str(file)!r} {message}")):
        load_yaml(file)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not valid YAML"):
        load_yaml(tmp_path / "run.yaml")
