"""Targets that are the mean over shifted views of the image."""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from singer_hf.baselines.method import Method
from singer_hf.cards.student_card import CardMethod
from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.vit.features import CapturedFeatures
from singer_hf.vit.tokens import map_to_tokens, split_tokens, tokens_to_map


@dataclass(frozen=True)
class View:
    """A view of an image, shifted by whole patches.

    Attributes:
        down: Patches by which the content moves down; negative: up.
        right: Patches by which the content moves to the right; negative: to the left.
        flipped: Whether the shifted image is flipped horizontally.
    """

    down: int = 0
    right: int = 0
    flipped: bool = False


@dataclass(frozen=True)
class ShiftedViews(Method):
    """Distils the mean of the teacher's patch tokens over shifted views (after PH-Reg, arXiv 2505.21501).

    Artifacts that do not follow the content of their patch are averaged out; those that do move along with it and
    stay. As in the paper's code, the first view is the image itself, the others are shifted by whole patches, so that
    no token has to be interpolated, half of them are flipped, and a patch that a view does not show is averaged over
    the views that do. Differences: uncovered borders show the reflected image (there: one colour); the views are drawn
    once (there: for every image, spread by farthest points), so that a run can be resumed; the targets are those of
    the distilled blocks.

    Args:
        num_views: Views including the image itself, >= 2. The teacher's forward pass takes as many times as long.
        max_shift: Largest shift as a share of the image's side, in (0, 0.5), rounded to whole patches.
        flips: Whether half of the views after the first are flipped horizontally.
        seed: Seed of the shifts.

    Raises:
        ValueError: If a setting is out of its range.
    """

    name = "shifted_views"
    title = "shifted views"
    card = CardMethod(
        "feature-distillation",
        "by matching features of several blocks: the student learned the mean of the teacher's features over shifted "
        "views of the image (after [PH-Reg](https://arxiv.org/abs/2505.21501)).",
        "mean of shifted views",
    )

    num_views: int = 10
    max_shift: float = 0.15
    flips: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_views < 2:
            raise ValueError(f"`num_views` must be at least 2, got {self.num_views!r}; use fitnet for one view")
        if not 0 < self.max_shift < 0.5:
            raise ValueError(f"`max_shift` must lie in (0, 0.5), got {self.max_shift!r}")

    def draw_views(self, grid: tuple[int, int]) -> list[View]:
        """Returns the views, all shifts different, the first of them the image itself.

        There are fewer than ``num_views`` if the grid does not have as many shifts.

        Args:
            grid: (rows, columns) of the patches.

        Raises:
            ValueError: If the largest shift is not more than half a patch.
        """
        rows, columns = (round(self.max_shift * count) for count in grid)
        shifts = [(i, j) for i in range(-rows, rows + 1) for j in range(-columns, columns + 1) if (i, j) != (0, 0)]
        if not shifts:
            raise ValueError(
                f"`max_shift` must be more than half a patch, got {self.max_shift!r} of {grid[0]} x {grid[1]} "
                f"patches; use at least {1 / max(grid):.2f}"
            )
        chosen = random.Random(self.seed).sample(shifts, min(self.num_views - 1, len(shifts)))
        return [View(), *(View(*shift, self.flips and i % 2 == 0) for i, shift in enumerate(chosen))]

    def make_distiller(
        self, student: nn.Module, teacher: nn.Module, args: Any, **inputs: Any
    ) -> "ShiftedViewsDistiller":
        """Returns a :class:`ShiftedViewsDistiller`; see :meth:`Method.make_distiller`."""
        return ShiftedViewsDistiller(student, teacher, self, **self.objective(args), **inputs)

    def describe(self, distiller: "ShiftedViewsDistiller") -> str:
        """The method in a few words."""
        shift = max(max(abs(view.down), abs(view.right)) for view in distiller.views)
        return (
            f"multi-layer feature distillation, targets averaged over {len(distiller.views)} views of the image "
            f"shifted by up to {shift} patches"
        )


class ShiftedViewsDistiller(FeatureDistiller):
    """Distils the mean over shifted views; see :class:`ShiftedViews`.

    Args:
        student: The student.
        teacher: A vision transformer without SiNGER adapters.
        settings: The settings of the method.
        **kwargs: Further arguments of :class:`FeatureDistiller`.

    Attributes:
        views: The views, the same for all images.

    Raises:
        ValueError: As :class:`FeatureDistiller`, or if the largest shift is not more than half a patch.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, settings: ShiftedViews, **kwargs: Any) -> None:
        super().__init__(student, teacher, **kwargs)
        self.views = settings.draw_views(self.teacher_input.grid)

    @torch.no_grad()
    def teacher_features(self, pixel_values: Tensor) -> CapturedFeatures:
        """Mean tokens (B, P+N, D_T) over the views after the distilled blocks; prefix tokens are the image's own.

        The images (B, 3, H, W) are normalised for the student.
        """
        images, grid = self.teacher_input(pixel_values), self.teacher_input.grid
        sums, prefixes, counts = {}, {}, 0
        for view in self.views:
            shown = self._teacher_capture(shift_images(images, view, self.teacher_view.patch_size)).outputs
            for i, tokens in shown.items():
                prefix, patches = split_tokens(tokens, self.teacher_view.num_prefix_tokens)
                prefixes.setdefault(i, prefix)
                sums[i] = sums.get(i, 0) + map_back(tokens_to_map(patches.float(), grid), view)
            counts = counts + map_back(images.new_ones(1, 1, *grid, dtype=torch.float32), view)
        means = {i: map_to_tokens(total / counts).to(prefixes[i].dtype) for i, total in sums.items()}
        return CapturedFeatures({i: torch.cat([prefixes[i], mean], dim=1) for i, mean in means.items()})


def shift_images(images: Tensor, view: View, patch_size: tuple[int, int]) -> Tensor:
    """Images (B, 3, H, W) as a view shows them, same shape; borders that the shift uncovers show the reflected image.

    Args:
        images: Images (B, 3, H, W).
        view: The view.
        patch_size: (height, width) of a patch in pixels.
    """
    down, right = view.down * patch_size[0], view.right * patch_size[1]
    height, width = images.shape[-2:]
    padded = F.pad(images, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)), mode="reflect")
    shown = padded[..., max(-down, 0) :, max(-right, 0) :][..., :height, :width]
    return shown.flip(-1) if view.flipped else shown


def map_back(feature_map: Tensor, view: View) -> Tensor:
    """Puts the cells of a view's feature map at the places of the image that they show; 0 where it shows none.

    Args:
        feature_map: Feature map (B, D, rows, columns) of a view.
        view: The view.

    Returns:
        (B, D, rows, columns).
    """
    feature_map = feature_map.flip(-1) if view.flipped else feature_map
    return F.pad(feature_map, (-view.right, view.right, -view.down, view.down))
