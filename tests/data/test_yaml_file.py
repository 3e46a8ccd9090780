"""YAML files of settings: names with values, each once."""

import re

import pytest

from singer_hf.data.yaml_file import load_yaml

TWICE = {
    "a: 1\nb: 2\na: 1\n": "`a` stands in line 1 and again in line 3",
    "x:\n  a: 1\n  a: 2\n": "`a` stands in line 2 and again in line 3",
    "x: {a: 1, a: 2}\n": "`a` stands in line 1 and again in line 1",
    "x: [{a: 1}, {b: 1, b: 1}]\n": "`b` stands in line 1 and again in line 1",
}


@pytest.mark.parametrize("text", TWICE)
def test_a_name_that_is_there_twice_is_refused_with_its_lines(tmp_path, text):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{str(file)!r} is not valid YAML: {TWICE[text]}')}$"):
        load_yaml(file)


def test_names_may_repeat_in_other_places_and_in_merged_anchors(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("base: &base {a: 1, b: 2}\nother: {<<: *base, a: 3}\nlist: [{a: 1}, {a: 2}]\n")
    assert load_yaml(file) == {"base": {"a": 1, "b": 2}, "other": {"a": 3, "b": 2}, "list": [{"a": 1}, {"a": 2}]}
