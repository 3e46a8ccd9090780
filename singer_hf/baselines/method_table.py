"""The table of methods by name."""

import re
from collections.abc import Mapping
from typing import Any

from singer_hf.baselines.cleaned import Cleaned
from singer_hf.baselines.cleanups.clip_norm import ClipNormMethod
from singer_hf.baselines.cleanups.local_outliers import LocalOutlierMethod
from singer_hf.baselines.cleanups.mean_outlier import MeanOutlierMethod
from singer_hf.baselines.cleanups.neighbor_mean import NeighborMeanMethod
from singer_hf.baselines.cleanups.register_method import TestTimeRegister
from singer_hf.baselines.cleanups.shifted_views import ShiftedViews
from singer_hf.baselines.cleanups.singular_direction import SingularDirectionMethod
from singer_hf.baselines.fitnet import FitNet
from singer_hf.baselines.method import Method
from singer_hf.baselines.relational import Relational
from singer_hf.baselines.singer import Singer
from singer_hf.baselines.vitkd import ViTKD

_METHODS = (
    *(Singer, Cleaned, FitNet, ViTKD, Relational),
    *(TestTimeRegister, ClipNormMethod, NeighborMeanMethod, MeanOutlierMethod),
    *(LocalOutlierMethod, SingularDirectionMethod, ShiftedViews),
)
METHODS: dict[str, type[Method]] = {method.name: method for method in _METHODS}


# Longest first, so that a name which is part of another does not hide it.
_NAMES = re.compile(rf"(?<![^_])(?:{'|'.join(sorted(METHODS, key=len, reverse=True))})(?![^_])")


def display_title(row: str) -> str:
    """Returns the name of a row of a comparison for people: "fitnet_token" becomes "FitNet token".

    Args:
        row: The name of a method, or a name of one's own that may contain it between underscores.
    """
    if "=" in row:  # a point of a grid, such as "r=4, outlier_quantile=0.9"
        return row
    return _NAMES.sub(lambda found: METHODS[found[0]].title, row).replace("_", " ")


def method_class(name: str) -> type[Method]:
    """Returns the class of the method called ``name``.

    Raises:
        ValueError: If there is no such method.
    """
    if name not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]


def make_method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """Returns the method called ``name`` with these settings.

    Args:
        name: A key of :data:`METHODS`.
        settings: Settings of the method; its defaults hold for the others.

    Raises:
        ValueError: If there is no such method, or a setting is unknown or out of its range.
    """
    method, settings = method_class(name), dict(settings or {})
    if unknown := sorted(set(settings) - set(method.setting_names())):
        raise ValueError(f"{name} does not take the settings {unknown}; it takes {sorted(method.setting_names())}")
    return method.from_settings(settings)
