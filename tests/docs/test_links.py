"""Links of README and docs that lead to a file of the repository, and to a heading of a page."""

import re

import pytest
from printed import PAGES, ROOT, anchors

FILES = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md"]


def test_anchors_are_those_of_github(tmp_path):
    page = tmp_path / "page.md"
    page.write_text('# `audit`: A - B, "c"\n\n```bash\n# no heading\n```\n## L_info\'s 2nd\n')
    assert anchors(page) == {"audit-a---b-c", "l_infos-2nd"}


@pytest.mark.parametrize("page", FILES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(file), f"{target} has no such heading"
