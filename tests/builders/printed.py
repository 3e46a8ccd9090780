"""The commands and the Python blocks that README and docs print."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def bash_commands(text: str) -> list[str]:
    """The commands of a page's bash blocks, one a line, with the variables that it sets put in; no `python -c`."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    lines = re.sub(r'^python -c "\n.*?^"$', "", blocks, flags=re.DOTALL | re.MULTILINE)
    commands, values = [], {}
    for line in lines.replace("\\\n", " ").splitlines():
        command = " ".join(line.split("#")[0].split())
        if assignment := re.fullmatch(r'(\w+)="(.*)"', command):
            values[assignment[1]] = assignment[2]
        elif command:
            commands.append(re.sub(r"\$(\w+)", lambda match: values[match[1]], command))
    return commands


def python_blocks(page: Path) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}
