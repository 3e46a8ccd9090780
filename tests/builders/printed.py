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


# All commands, each with the page that prints it.
COMMANDS = sorted({(command, page.name) for page in PAGES for command in bash_commands(page.read_text("utf-8"))})
SET_UP = "python3 -m venv .venv && . .venv/bin/activate && pip install -q -e "
ELSEWHERE = {
    f'{SET_UP}".[plots]" && accelerate launch examples/distill.py': "installs the package; the demo: tests/demo",
    f'{SET_UP}".[test]" && python -m pytest -n 2': "installs the package and runs these tests: .ci/run",
    'hf upload user/student outputs/student --exclude "checkpoint-*"': "the Hub: tests/training/test_hub_server.py",
    "bash benchmarks/natural_artifacts.sh": "run as a whole: tests/demo/test_natural_artifacts.py",
}
# What "..." stands for.
REQUIRED = (
    "--teacher_name_or_path facebook/dinov2-large --student_config vit-small-patch16 --dataset_name path/to/images "
    "--output_dir out"
)
