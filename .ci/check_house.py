"""Checks the measures of the house: sizes of files, functions and rooms, and what public docstrings must say.

    python .ci/check_house.py [folder or file ...]

Prints one line per finding and exits with 1 if there are any. Without arguments it checks the package and the tests.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE, TESTS = ROOT / "singer_hf", ROOT / "tests"
MAX_FILE, MAX_TEST_FILE, MAX_FUNCTION, MAX_ROOM = 250, 300, 45, 12
MIN_ARGUMENTS = 3  # from here on a public callable documents its arguments

Callable = ast.FunctionDef | ast.AsyncFunctionDef
# "(B, N, D)", "(..., N)", "(D,)", "(3, H, W)", "scalar", "one per block" and the like.
SHAPE = re.compile(r"\((?:\.\.\.|[A-Z0-9][\w'+*/ -]*)(?:, ?[\w'+*/ -]*)*,?\)|scalar", re.IGNORECASE)


def check_file(file: Path) -> Iterator[str]:
    """Yields the findings in one file."""
    text = file.read_text(encoding="utf-8")
    lines, limit = text.count("\n"), MAX_FILE if PACKAGE in file.parents else MAX_TEST_FILE
    if lines > limit:
        yield f"{lines} lines, at most {limit}"
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, Callable) and (size := _size(node)) > MAX_FUNCTION:
            yield f"{node.lineno}: {node.name} has {size} lines without its docstring, at most {MAX_FUNCTION}"
    if PACKAGE in file.parents:
        for owner, node in _public_callables(tree):
            yield from (f"{node.lineno}: {owner}{node.name} {problem}" for problem in _missing(owner, node, tree))


def check_rooms() -> Iterator[str]:
    """Yields the rooms with too many files."""
    for room in {file.parent for file in PACKAGE.rglob("*.py")} - {PACKAGE}:
        count = sum(file.name != "__init__.py" for file in room.glob("*.py"))
        if count > MAX_ROOM:
            yield f"{room.relative_to(ROOT)}: {count} files, at most {MAX_ROOM}"


def _size(node: Callable) -> int:
    docstring = ast.get_docstring(node, clean=False)
    return node.end_lineno - node.lineno + 1 - (docstring.count("\n") + 1 if docstring else 0)


def _public_callables(tree: ast.Module) -> Iterator[tuple[str, Callable]]:
    """("Class." or "", function) of everything public; ``__init__`` is documented in its class."""
    for node in tree.body:
        if isinstance(node, Callable) and not node.name.startswith("_"):
            yield "", node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if isinstance(inner, Callable) and (not inner.name.startswith("_") or inner.name == "__init__"):
                    yield f"{node.name}.", inner


def _missing(owner: str, node: Callable, tree: ast.Module) -> Iterator[str]:
    documented = node
    if node.name == "__init__":
        documented = next(item for item in tree.body if isinstance(item, ast.ClassDef) and f"{item.name}." == owner)
    docstring = ast.get_docstring(documented) or ""
    arguments = [a for a in (*node.args.args, *node.args.kwonlyargs) if a.arg not in ("self", "cls")]
    is_hook = owner and node.name.startswith("on_")  # a TrainerCallback's methods, documented by transformers
    has_arguments = "Args:" in docstring or "see :meth:" in docstring  # an override of a documented method
    if len(arguments) >= MIN_ARGUMENTS and not has_arguments and not is_hook:
        yield f"takes {len(arguments)} arguments and its docstring has no `Args:`"
    annotations = [ast.unparse(a.annotation) for a in arguments if a.annotation]
    annotations += [ast.unparse(node.returns)] if node.returns else []
    if any(re.search(r"\bTensor\b", text) for text in annotations) and not SHAPE.search(docstring):
        yield "takes or returns tensors and its docstring gives no shape"
    raised = {error for error in map(_raised, ast.walk(node)) if error}
    if raised and "Raises:" not in docstring:
        yield f"raises {', '.join(sorted(raised))} and its docstring has no `Raises:`"


def _raised(node: ast.AST) -> str | None:
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
        return node.exc.func.id
    return None


def main() -> None:
    """Prints the findings and exits with 1 if there are any."""
    given = [Path(name).resolve() for name in sys.argv[1:]]
    folders = given or [PACKAGE, TESTS]
    files = sorted({file for path in folders for file in ([path] if path.is_file() else path.rglob("*.py"))})
    findings = [f"{file.relative_to(ROOT)}:{problem}" for file in files for problem in check_file(file)]
    findings += [] if given else list(check_rooms())
    print(*findings, f"{len(findings)} findings in {len(files)} files", sep="\n")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
