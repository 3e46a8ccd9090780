"""The rooms of the package, from the imports: a room imports only rooms above it in `ROOMS`."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import singer_hf

PACKAGE = Path(singer_hf.__file__).parent
# Lowest first, as in docs/architecture.md.
ROOMS = (
    *("configs", "vit", "data", "cards", "artifacts", "tuner", "export", "extraction", "distillation", "baselines"),
    *("evaluation", "inspection", "training", "cleaning", "comparison", "demo", "commands"),
)
FILES = sorted(PACKAGE.rglob("*.py"))
every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())


def _room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0]


def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _imports(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    """(module, name) of every import; name is None for `import module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def _without_type_checking(tree: ast.Module) -> ast.Module:
    """The module without `if TYPE_CHECKING:`, which nothing runs."""
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    ]
    return tree


def _libraries(tree: ast.AST) -> set[str]:
    return {module.split(".")[0] for module, _ in _imports(tree)}


def test_the_table_names_every_room():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert folders == set(ROOMS)


def test_a_room_imports_only_rooms_above_it():
    upward = []
    for file in FILES:
        if _room(file) in ROOMS:
            own = ROOMS.index(_room(file))
            rooms = {module.split(".")[1] for module, _ in _imports(_tree(file)) if module.startswith("singer_hf.")}
            upward += [f"{file.relative_to(PACKAGE)} -> {room}" for room in rooms & set(ROOMS[own + 1 :])]
    assert upward == []


def test_modules_import_each_other_without_a_circle():
    modules = {".".join(("singer_hf", *file.relative_to(PACKAGE).with_suffix("").parts)): file for file in FILES}
    arrows = {name: {m for m, _ in _imports(_tree(file)) if m in modules} for name, file in modules.items()}
    while leaves := {name for name, targets in arrows.items() if not targets}:
        arrows = {name: targets - leaves for name, targets in arrows.items() if name not in leaves}
    assert arrows == {}


def test_importing_the_package_loads_neither_audit_nor_evaluation_nor_matplotlib():
    program = "import sys, singer_hf; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    heavy = ("singer_hf.inspection", "singer_hf.evaluation", "singer_hf.comparison", "matplotlib", "sklearn")
    heavy += ("torch", "transformers", "peft", "datasets")
    assert [name for name in loaded if name.startswith(heavy)] == []


@every_file
def test_peft_is_imported_in_the_tuner_and_where_adapters_are_loaded(file):
    if _room(file) not in ("tuner", "commands"):
        assert "peft" not in _libraries(_tree(file))


@every_file
def test_the_trainer_class_is_imported_in_training_and_for_the_teachers_of_the_demo(file):
    if _room(file) not in ("training", "demo"):
        tree = _without_type_checking(_tree(file))
        assert ("transformers", "Trainer") not in set(_imports(tree))


@every_file
def test_timm_is_imported_nowhere(file):
    assert "timm" not in _libraries(_tree(file))


@every_file
def test_libraries_of_extras_are_imported_inside_functions_only(file):
    tree = _without_type_checking(_tree(file))
    tree.body = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    assert not {"matplotlib", "onnx", "onnxruntime", "onnxscript"} & _libraries(tree)


FAMILIES = re.compile(
    r"dino|deit|beit|siglip|data2vec|i-?jepa|vit_?mae|vit_?msn|ViTModel|\beva\b|EvaBlock|CLIP[VTM]", re.IGNORECASE
)


def _words(tree: ast.Module) -> Iterator[str]:
    """Names and strings of the code, without docstrings and comments."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value
        elif isinstance(node, ast.Name | ast.Attribute | ast.alias | ast.arg | ast.ClassDef | ast.FunctionDef):
            yield next(getattr(node, key) for key in ("id", "attr", "name", "arg") if hasattr(node, key))


@every_file
def test_model_families_are_named_in_vit_only(file):
    if _room(file) != "vit":
        named = {word for word in _words(_tree(file)) if FAMILIES.search(word)}
        if _room(file) in ("evaluation", "commands"):  # a protocol is called after the paper that made it
            named = {word for word in named if "dinov2" not in word.lower()}
        assert named == set()


def test_the_rules_see_a_violation():
    tree = ast.parse("from timm import create_model\ndef f():\n    'docs of ViTModel'\n    return Dinov2Model")
    assert "timm" in _libraries(tree)
    assert [word for word in _words(tree) if FAMILIES.search(word)] == ["Dinov2Model"]
