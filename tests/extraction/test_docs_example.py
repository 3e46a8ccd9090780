"""The example of docs/features.md runs and gives the shapes that it names."""

import re

import datasets
from printed import ROOT


def test_the_example_of_the_page_gives_the_shapes_in_its_comments(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    page = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    lines, names = example.splitlines(), {}
    for line in lines:
        code, _, comment = line.partition("#")
        is_value = code.startswith(("extract_features", "both."))
        exec(f"value = {code}" if is_value else code, names)
        if is_value:
            value = names["value"]
            shapes = [tuple(part.shape) for part in (value.values() if isinstance(value, dict) else [value])]
            assert shapes == [tuple(map(int, part.split(", "))) for part in re.findall(r"\(([\d, ]+)\)", comment)], (
                line
            )
    assert names["both"].column_names[-2:] == ["map_5", "refined_5"]
    assert names["raw"].features["map_5"].dtype == "float16"
