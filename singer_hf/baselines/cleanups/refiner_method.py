"""Clean-up methods without training that refine the tokens after a block.

A refiner takes the place of an adapter: it has the ``refine`` of :class:`singer_hf.tuner.layer.SingerLayer`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from singer_hf.baselines.method import Method
from singer_hf.cards.student_card import CardMethod
from singer_hf.distillation.feature_distiller import FeatureDistiller, Refiner
from singer_hf.distillation.teacher_input import teacher_image_size
from singer_hf.vit.block_indices import default_layers, resolve_layers
from singer_hf.vit.structure import view_vit
from singer_hf.vit.view import ViTView


@dataclass(frozen=True)
class RefinerMethod(Method):
    """Distils features that an untrained refiner cleans of outliers."""

    @property
    def card(self) -> CardMethod:
        """The method in the model card of its student."""
        return refined_features_card(f"the method `{self.name}`")

    def make_refiner(self, view: ViTView, grid: tuple[int, int]) -> Refiner:
        """Returns the refiner for a teacher.

        Args:
            view: View of the teacher.
            grid: (rows, columns) of the teacher's patches.
        """
        raise NotImplementedError

    def make_refiners(self, teacher: nn.Module, blocks: Sequence[int], grid: tuple[int, int]) -> dict[int, Refiner]:
        """Returns the refiner of each distilled block; by default the same for all.

        Args:
            teacher: The prepared teacher.
            blocks: 0-based indices of the distilled blocks, ascending.
            grid: (rows, columns) of the teacher's patches.
        """
        return dict.fromkeys(blocks, self.make_refiner(view_vit(teacher), grid))

    def make_distiller(self, student: nn.Module, teacher: nn.Module, args: Any, **inputs: Any) -> FeatureDistiller:
        """Returns the distiller with a refiner after every distilled block; see :meth:`Method.make_distiller`."""
        objective, view = self.objective(args), view_vit(teacher)
        if shared := inputs.get("teacher_input"):
            size = shared.teacher_image_size
        else:
            size = teacher_image_size(student, view, inputs.get("image_size"), objective["student_layers"])
        given = objective["teacher_layers"]
        blocks = resolve_layers(
            "teacher_layers", default_layers(view.num_blocks) if given is None else given, view.num_blocks
        )
        refiners = self.make_refiners(teacher, sorted(blocks), view.grid(*size))
        return FeatureDistiller(student, teacher, refiners=refiners, **objective, **inputs)

    def describe(self, distiller: FeatureDistiller) -> str:
        """The method in a few words."""
        refiner = next(iter(distiller.refiners.values()))
        return f"multi-layer feature distillation, targets refined by {refiner}"


class DeviceCopy:
    """A token that a refiner needs, copied to the device of the tokens once instead of in every step.

    Args:
        tensor: The token (D,).
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def on(self, device: torch.device) -> Tensor:
        """The token (D,) on a device."""
        if self._tensor.device != device:
            self._tensor = self._tensor.to(device)
        return self._tensor


def refined_features_card(method: str) -> CardMethod:
    """The card text of a clean-up method.

    Args:
        method: The clean-up method in words.
    """
    return CardMethod(
        "feature-distillation",
        "by matching features of several blocks: the student learned the teacher's features, whose high-norm tokens "
        f"were refined by {method}.",
    )


def replace_patches(prefix: Tensor, patches: Tensor, outliers: Tensor, replacement: Tensor) -> Tensor:
    """Tokens (B, P+N, D) in which the outliers among the patches are replaced.

    Args:
        prefix: Prefix tokens (B, P, D).
        patches: Patch tokens (B, N, D).
        outliers: True at the patches to replace, (B, N).
        replacement: Tokens that broadcast to (B, N, D).
    """
    patches = torch.where(outliers.unsqueeze(-1), replacement.to(patches.dtype), patches)
    return torch.cat([prefix, patches], dim=1)
