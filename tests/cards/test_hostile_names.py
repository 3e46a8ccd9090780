"""Names of data sets, models and settings in the model card act neither as HTML nor as markdown."""

import dataclasses

import pytest
from hub_storage import card_errors

from singer_hf.cards.markdown import code, plain_text
from singer_hf.cards.student_card import CardInfo, student_card

HOSTILE = (
    "a\n\n# Evil heading\n<script>alert(1)</script> `</code><img src=x>` [click](javascript:run) ![p](http://x/y)"
)
NAMES = ("student_class", "student", "teacher", "teacher_class", "dataset", "dataset_revision", "license")
NESTED = {
    "settings": {HOSTILE: HOSTILE},
    "norms": {HOSTILE: 1.0},
    "evaluations": [(HOSTILE, HOSTILE, HOSTILE, 0.5)],
    "loss_curve": [{"step": 1, HOSTILE: 1.0}],
    "versions": {HOSTILE: HOSTILE},
    "loss_figure": f"{HOSTILE}.png",
}


def outside_code(text: str) -> str:
    """Text without its inline code and code blocks, in which HTML has no effect."""
    return "".join("".join(block.split("`")[::2]) for block in text.split("```")[::2])


@pytest.mark.parametrize("name", [*NAMES, *NESTED])
def test_a_hostile_name_adds_no_heading_html_or_link(name):
    card = student_card(dataclasses.replace(CardInfo(versions={}), **{name: NESTED.get(name, HOSTILE)}))
    text = outside_code(card.text)
    assert [line for line in card.text.splitlines() if line.startswith("#") and "Evil" in line[:8]] == []
    assert "<" not in text
    assert "](javascript" not in text.replace("\\]", "")
    assert "![p](" not in text.replace("\\[", "")
    assert card_errors(str(card)) == []


@pytest.mark.parametrize(
    ("dataset", "shown"),
    [
        ("/data/a`<b>|\n# c", "the local folder `a'<b>\\| # c`"),
        ("./a`<b>\n# c", "the local folder `a'<b> # c`"),
        ("a <b>x\n# c [d](e)", "a &lt;b&gt;x # c \\[d\\](e)"),
    ],
)
def test_a_hostile_data_set_is_shown_as_text(dataset, shown):
    assert f"| Data | {shown} |" in student_card(CardInfo(versions={}, dataset=dataset)).text


def test_ordinary_names_stay_as_they_are():
    for name in ("drawn scenes", "CIFAR 10", "knn_top1", "ILSVRC/imagenet-1k", "0.5 % of a-b"):
        assert plain_text(name) == name
        assert code(name) == f"`{name}`"
    assert code("") == ""
    assert plain_text("a < b & *c*\u202e\n# d") == "a &lt; b &amp; \\*c\\* # d"
    assert code("a`b`\n# c") == "`a'b' # c`"
