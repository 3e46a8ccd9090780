"""The recommended objective: the defaults of distillers, training arguments, commands and recipes.

docs/results.md has the measurements behind it.
"""

from typing import Any

# Fields of SingerTrainingArguments and arguments of SingerDistiller by their names.
OBJECTIVE: dict[str, Any] = {
    "kd_weight": 1.0,
    "kd_loss": "mse",
    "target_norm": "channel_token",
    "outlier_weight": 1.0,
    "outlier_loss": "neighbors",
    "outlier_quantile": 0.97,
    "info_weight": 1.0,
    "info_loss": "gram",
    "info_share": 0.25,
    "detach_refined": True,
}
