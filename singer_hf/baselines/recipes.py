"""Named settings of SiNGER: the paper's, the released code's, and ours."""

from typing import Any

from singer_hf.distillation.defaults import OBJECTIVE
from singer_hf.tuner.config import SingerConfig

_PAPER = {
    "init_weights": "nullspace",
    "nullspace_source": "mlp",
    "init_scale": 1.0,
    "gate": "none",
    "kd_weight": 1.0,
    "kd_loss": "mse",
    "target_norm": "none",
    "outlier_weight": 0.01,
    "outlier_loss": "absolute",
    "outlier_quantile": 0.97,
    "info_weight": 1.0,
    "info_loss": "gram",
    "info_share": 1.0,
    "detach_refined": False,
}
_ADAPTER = ("init_weights", "nullspace_source", "init_scale", "gate")

# Fields of SingerConfig and SingerTrainingArguments by their names. The rank is not part of a recipe: 64 was published
# for a teacher of width 1024, which a small teacher does not have.
RECIPES: dict[str, dict[str, Any]] = {
    # SiNGER, arXiv 2509.20986, section 3, with the weights published with the code.
    "paper": _PAPER,
    # The released code where it differs from the paper.
    "reference": _PAPER | {"init_weights": "reference", "null_threshold": 0.05, "info_loss": "reference"},
    # The defaults of SingerConfig and of the objective; docs/results.md has the measurements.
    "recommended": {name: getattr(SingerConfig(), name) for name in _ADAPTER} | OBJECTIVE,
}
# The recipe of the demo and of `distill`.
DEFAULT_RECIPE = "recommended"


def recipe_settings(name: str) -> dict[str, Any]:
    """The settings of a recipe: fields of SingerConfig and SingerTrainingArguments by their names.

    Raises:
        ValueError: If there is no such recipe.
    """
    if name not in RECIPES:
        raise ValueError(f"`recipe` must be one of {', '.join(map(repr, RECIPES))}, got {name!r}")
    return dict(RECIPES[name])
