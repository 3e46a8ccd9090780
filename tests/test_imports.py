"""The layers of the package, read off its imports: a module imports only modules of lower layers."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import singer_hf

PACKAGE = Path(singer_hf.__file__).parent

# Lowest first; names without the leading "singer_hf.". A new module needs a place here.
LAYERS = (
    {
        "comparison",
        "comparison.metric_table",
        "component_log",
        "card_privacy",
        "data",
        "demo_scenes",
        "evaluation.fit_state",
        "evaluation.imagenet_classes",
        "evaluation.metrics",
        "evaluation.probes",
        "evaluation.sources",
        "hub",
        "image_rows",
        "inspection.evaluation_figures",
        "inspection.picture_data",
        "inspection.results",
        "inspection.running",
        "inspection.statistics",
        "losses",
        "nullspace",
        "pairing",
        "planting",
        "recipes",
        "transforms",
        "version",
        "vit_blocks",
    },
    {
        "comparison.summary",
        "evaluation.benchmarks",
        "evaluation.bootstrap",
        "evaluation.evaluate_metrics",
        "evaluation.feature_cache",
        "evaluation.knn",
        "evaluation.sliding_window",
        "evaluation.tasks",
        "evaluation.views",
        "inspection.similarity",
        "inspection.verdict",
        "loading",
        "model_card",
        "training_args",
        "training_data",
        "vit_view",
    },
    {
        "comparison.tables",
        "evaluation.dense_data",
        "evaluation.linear_probe",
        "evaluation.results",
        "features",
        "inspection.attention",
        "inspection.report_tables",
    },
    {
        "evaluation.benchmark_data",
        "evaluation.fit",
        "evaluation.frozen_features",
        "inspection.comparison",
        "inspection.directions",
        "inspection.snapshots",
        "reads",
        "refiners",
        "students",
        "teacher_input",
        "tuner.layer",
    },
    {
        "evaluation.evaluators",
        "evaluation.protocols",
        "inspection.figures",
        "inspection.nullspace_report",
        "inspection.summarise",
        "planted_teacher",
        "test_time_registers",
        "tuner.config",
    },
    {
        "comparison.figures",
        "evaluation.run_settings",
        "inspection.audit",
        "inspection.curves",
        "inspection.run_figures",
        "tuner.model",
    },
    {"evaluation", "evaluation.dense_runs", "evaluation.linear_runs", "inspection.report", "plan", "tuner"},
    {"distiller", "evaluation.benchmark_runs", "inspection"},
    {"callbacks", "checkpoint", "comparison.methods", "run_card", "vitkd"},
    {"comparison.measures", "comparison.study", "composition", "run_pictures"},
    {"audit_callback", "comparison.images", "trainer"},
    {"comparison.cells", "demo"},
    {"comparison.costs"},
    {"comparison.runner"},
    {""},
)
LAYER_OF = {module: layer for layer, modules in enumerate(LAYERS) for module in modules}


def _module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {_module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
every_module = pytest.mark.parametrize("module", MODULES)


def _tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def _imports(tree: ast.AST, module: str) -> Iterator[tuple[str, str | None]]:
    """(module, name) of every import, absolute; name is None for `import module`."""
    own_package = module.split(".") if MODULES[module].name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ["singer_hf", *own_package[: len(own_package) - node.level + 1]] if node.level else []
            source = ".".join(part for part in (*start, node.module or "") if part)
            yield from ((source, alias.name) for alias in node.names)


def _without_type_checking(tree: ast.Module) -> ast.Module:
    """The module without `if TYPE_CHECKING:`, which nothing runs."""
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    ]
    return tree


def _own_imports(module: str) -> set[str]:
    """Modules of this package that a module imports; `from package import module` counts as the module."""
    found = set()
    for source, name in _imports(_without_type_checking(_tree(module)), module):
        if source.split(".")[0] != "singer_hf":
            continue
        inner = ".".join(source.split(".")[1:])
        full = f"{inner}.{name}".strip(".") if name else inner
        found.add(full if full in MODULES else inner)
    return found


def _packages(tree: ast.AST, module: str) -> set[str]:
    return {source.split(".")[0] for source, _ in _imports(tree, module)}


@every_module
def test_a_module_has_a_layer(module):
    assert module in LAYER_OF, (
        f"singer_hf/{MODULES[module].relative_to(PACKAGE)} has no layer: add {module!r} to LAYERS in "
        "tests/test_imports.py, above everything it imports"
    )


def test_every_layered_module_exists():
    assert set(LAYER_OF) - set(MODULES) == set(), "remove these modules from LAYERS in tests/test_imports.py"


@every_module
def test_a_module_imports_only_lower_layers(module):
    too_high = {name for name in _own_imports(module) if LAYER_OF.get(name, 0) >= LAYER_OF.get(module, 0)}
    assert too_high == set(), f"singer_hf.{module} (layer {LAYER_OF.get(module)}) imports modules that are not lower"


@every_module
def test_peft_is_imported_in_the_tuner_and_the_distiller_only(module):
    if module != "distiller" and module.split(".")[0] != "tuner":
        assert "peft" not in _packages(_tree(module), module)


@every_module
def test_the_trainer_class_is_imported_in_trainer_only(module):
    if module != "trainer":
        tree = _without_type_checking(_tree(module))
        names = {name for source, name in _imports(tree, module) if source.split(".")[0] == "transformers"}
        assert "Trainer" not in names


@every_module
def test_timm_is_imported_nowhere(module):
    assert "timm" not in _packages(_tree(module), module)


@every_module
def test_matplotlib_is_imported_inside_functions_of_figures_only(module):
    tree = _without_type_checking(_tree(module))
    if module.startswith(("inspection.", "comparison.")) and module.endswith(("figures", "curves")):
        tree.body = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    assert "matplotlib" not in _packages(tree, module)


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


@every_module
def test_model_families_are_named_in_the_view_only(module):
    if module != "vit_view":
        named = {word for word in _words(_tree(module)) if FAMILIES.search(word)}
        if module.startswith("evaluation."):  # a protocol is called after the paper that made it
            named = {word for word in named if "dinov2" not in word.lower()}
        assert named == set()


def test_the_rules_see_a_violation():
    tree = ast.parse("from timm import create_model\ndef f():\n    'docs of ViTModel'\n    return Dinov2Model")
    assert "timm" in {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert [word for word in _words(tree) if FAMILIES.search(word)] == ["Dinov2Model"]
    assert "features" in _own_imports("reads")
    assert {"tuner.config", "tuner.layer"} <= _own_imports("tuner")
