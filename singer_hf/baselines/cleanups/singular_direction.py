"""Projection of outlier patch tokens off the direction that the teacher's weights drive tokens to."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from singer_hf.artifacts.directions import accumulated_direction
from singer_hf.baselines.cleanups.norm_thresholds import SigmaRule, check_scope, norms_and_thresholds
from singer_hf.baselines.cleanups.refiner_method import DeviceCopy, RefinerMethod, replace_patches
from singer_hf.vit.structure import view_vit
from singer_hf.vit.tokens import split_tokens


@dataclass(frozen=True)
class ProjectedOutliers:
    """Removes the part along one direction from patch tokens whose norm exceeds a threshold.

    Args:
        num_prefix_tokens: Leading tokens that are never refined, P.
        direction: Unit vector (D,) of a :class:`DeviceCopy`.
        rule: The rule of the threshold.
        scope: Patches over which the threshold is computed, as in :class:`ClipNorm`.
    """

    num_prefix_tokens: int
    direction: DeviceCopy = field(repr=False, compare=False)
    rule: SigmaRule
    scope: str

    def refine(self, hidden_states: Tensor) -> Tensor:
        """Tokens (B, P+N, D) -> same shape and dtype; prefix tokens and inliers are unchanged bit for bit."""
        prefix, patches = split_tokens(hidden_states, self.num_prefix_tokens)
        norms, thresholds = norms_and_thresholds(patches, None, self.rule, self.scope)
        tokens, direction = patches.float(), self.direction.on(patches.device)
        along = (tokens * direction).sum(dim=-1, keepdim=True)
        return replace_patches(prefix, patches, norms > thresholds, tokens - along * direction)


@dataclass(frozen=True)
class SingularDirectionMethod(RefinerMethod):
    """Distils features whose outliers are projected off the singular-defect direction of their block.

    After Wang et al., "SINDER: Repairing the Singular Defects of DINOv2", ECCV 2024, arXiv 2407.16826, from which the
    direction is taken (:func:`singer_hf.artifacts.directions.accumulated_direction`). SINDER itself finds defective
    tokens by their angle to it and trains the singular values of the teacher's weights; nothing is trained here.

    Args:
        sigma: An outlier's norm exceeds the mean norm by this number of standard deviations, > 0.
        scope: Patches over which mean and deviation are taken: those of each ``"image"`` or of the whole ``"batch"``.

    Raises:
        ValueError: If a setting is out of its range.
    """

    name = "singular_direction"
    title = "singular direction"

    sigma: float = 4.0
    scope: str = "image"

    def __post_init__(self) -> None:
        SigmaRule(self.sigma)
        check_scope(self.scope)

    def make_refiners(
        self, teacher: nn.Module, blocks: Sequence[int], grid: tuple[int, int]
    ) -> dict[int, ProjectedOutliers]:
        """Returns the refiner of each distilled block; see :meth:`RefinerMethod.make_refiners`."""
        view, rule = view_vit(teacher), SigmaRule(self.sigma)
        directions = {i: DeviceCopy(accumulated_direction(view, i)) for i in blocks}
        return {i: ProjectedOutliers(view.num_prefix_tokens, directions[i], rule, self.scope) for i in blocks}
