"""Registers SiNGER with PEFT as soon as PEFT is imported, so that importing the package costs no import of PEFT.

PEFT imports torch and transformers, which takes seconds. Nobody can see a difference to a registration at once: who
uses PEFT imports it.
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_REGISTERING = "singer_hf.tuner"  # registers when it is imported


def register_with_peft() -> None:
    """Registers SiNGER now if PEFT is imported, otherwise at the end of its import."""
    if "peft" in sys.modules:
        import_module(_REGISTERING)
    elif not any(isinstance(finder, _PeftFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PeftFinder())


class _PeftFinder(MetaPathFinder):
    """Finds PEFT as Python would, and has it registered after its code has run."""

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "peft":
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            _register_after(spec.loader)
        return spec


def _register_after(loader: Loader) -> None:
    execute = loader.exec_module

    def execute_and_register(module: ModuleType) -> None:
        execute(module)
        import_module(_REGISTERING)

    loader.exec_module = execute_and_register
