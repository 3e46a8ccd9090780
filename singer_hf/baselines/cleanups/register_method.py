"""Test-time registers as a method: the register neurons are found in calibration images."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.baselines.cleanups.refiner_method import refined_features_card
from singer_hf.baselines.cleanups.registers import install_test_time_registers
from singer_hf.baselines.method import Method
from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.vit.block_indices import resolve_layers
from singer_hf.vit.features import FeatureCapture
from singer_hf.vit.structure import view_vit
from singer_hf.vit.view import ViTView


@dataclass(frozen=True)
class TestTimeRegister(Method):
    """Distils a teacher with a register token added at test time (Jiang et al., arXiv:2506.08010).

    Args:
        num_neurons: MLP units whose activations move to the register, >= 1.
        outlier_block: Block after which the outliers are detected, negatives allowed: the first with all of them.

    Raises:
        ValueError: If ``num_neurons`` is less than 1.
    """

    __test__ = False  # the name is the paper's, not that of a test

    name = "test_time_register"
    needs_images = True
    card = refined_features_card(
        "a test-time register ([paper](https://arxiv.org/abs/2506.08010)), an additional token that takes their "
        "activations"
    )

    num_neurons: int = 1
    outlier_block: int = -1

    def __post_init__(self) -> None:
        if self.num_neurons < 1:
            raise ValueError(f"`num_neurons` must be at least 1, got {self.num_neurons!r}")

    def prepare(self, teacher: nn.Module, images: Iterable[Tensor] = (), seed: int = 0) -> nn.Module:
        """Returns the teacher with the register installed.

        Args:
            teacher: The plain teacher.
            images: Batches (B, 3, H, W) normalised for the teacher, in which the neurons are found.
            seed: Not used.

        Raises:
            ValueError: If no image has outliers or a setting does not fit the teacher.
        """
        settings = {"num_neurons": self.num_neurons, "outlier_block": self.outlier_block}
        install_test_time_registers(teacher, find_register_neurons(teacher, images, **settings))
        return teacher

    def describe(self, distiller: FeatureDistiller) -> str:
        """The method in a few words."""
        return "multi-layer feature distillation, targets refined by a test-time register"


@torch.no_grad()
def find_register_neurons(
    model: nn.Module,
    images: Iterable[Tensor],
    *,
    outlier_block: int,
    num_neurons: int,
    rule: OutlierRule | None = None,
) -> dict[int, Tensor]:
    """Finds the hidden MLP units that are most active at outliers (register neurons, arXiv:2506.08010).

    A unit's score is the mean magnitude of its activation at the outliers of an image, averaged over the images with
    outliers. The units of blocks 0 to ``outlier_block`` are ranked together.

    Args:
        model: Any vision transformer, without test-time registers.
        images: Batches (B, 3, H, W), normalised for the model.
        outlier_block: Block after which the outliers are detected, negatives allowed: the first with all of them.
        num_neurons: Number of units, > 0.
        rule: The outlier rule; None: ``OutlierRule()``.

    Returns:
        Block index -> indices (K,) of its units, ascending, int64 on the CPU; only blocks with such units.

    Raises:
        ValueError: If a number is out of range or no image has outliers.
    """
    view = view_vit(model)
    [last] = resolve_layers("outlier_block", [outlier_block], view.num_blocks)
    width = view.mlp_layers(last)[1].in_features
    if not 0 < num_neurons <= (last + 1) * width:
        raise ValueError(f"`num_neurons` must lie in [1, {(last + 1) * width}], got {num_neurons!r}")
    scores = _score_units(view, images, last, rule or OutlierRule())
    chosen = scores.flatten().topk(num_neurons).indices.sort().values.cpu()
    blocks = chosen // width
    return {int(i): chosen[blocks == i] % width for i in blocks.unique()}


def _score_units(view: ViTView, images: Iterable[Tensor], last: int, rule: OutlierRule) -> Tensor:
    """Scores (last + 1, H) of the units of blocks 0 to ``last``, summed over the images."""
    activations: dict[int, Tensor] = {}
    capture, weight = FeatureCapture(view, (last,)), view.patch_embedding.weight
    handles = [
        view.mlp_layers(i)[1].register_forward_pre_hook(partial(_keep_activations, activations, i))
        for i in range(last + 1)
    ]
    scores, found = torch.zeros(last + 1, view.mlp_layers(last)[1].in_features, device=weight.device), 0
    try:
        for batch in images:
            tokens = capture(batch.to(weight.device, weight.dtype)).outputs[last]
            outliers = rule.mask(tokens[:, view.num_prefix_tokens :].float().norm(dim=-1))
            found += int(outliers.any(dim=1).sum())
            shares = outliers / outliers.sum(dim=1, keepdim=True).clamp(min=1)
            for i, score in enumerate(scores):
                magnitudes = activations[i][:, view.num_prefix_tokens :].abs().float()
                score += torch.einsum("bn,bnh->h", shares, magnitudes)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ValueError(
            f"`images` must have outliers after block {last}, got none; use more images or a lower threshold"
        )
    return scores


def _keep_activations(activations: dict[int, Tensor], index: int, module: nn.Module, args: tuple) -> None:
    activations[index] = args[0]
