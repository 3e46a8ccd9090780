"""Tests of what older versions of a library cannot do; the table is in docs/models.md."""

from importlib.metadata import version

import pytest
from packaging.version import Version


def needs(library: str, lowest: str) -> pytest.MarkDecorator:
    """Marks a test that is skipped where a library is older."""
    installed = version(library)
    return pytest.mark.skipif(
        Version(installed) < Version(lowest), reason=f"needs {library} {lowest}, {installed} is installed"
    )
