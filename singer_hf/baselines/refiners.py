"""Other ways to clean a teacher of high-norm patch tokens, to compare SiNGER with.

:class:`ClipNorm` and :class:`NeighborMean` change the tokens of a block and stand in for an adapter: both have the
``refine`` of :class:`singer_hf.tuner.layer.SingerLayer`. Test-time registers, which change the teacher's own forward
pass, stand in :mod:`singer_hf.baselines.registers`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.vit.structure import ViTView
from singer_hf.vit.tokens import split_tokens

REFINERS = ("clip_norm", "neighbor")
SCOPES = ("image", "batch")


@dataclass(frozen=True)
class ClipNorm:
    """Scales patch tokens that are longer than a threshold down to it; their direction is kept.

    Args:
        num_prefix_tokens: Leading tokens that are never refined, P.
        quantile: In (0, 1): the threshold is this quantile of the patch norms. Where the share of outliers is larger
            than ``1 - quantile`` they are kept, for the quantile is then one of them.
        rule: The threshold is this rule's. Neither of the two: ``OutlierRule()``.
        scope: Whose patches the threshold is taken over: ``"image"``, each image's own, or ``"batch"``, those of all
            images of the call. Outliers gather in some images; where they come close to half of the patches, the
            image's own median and MAD rise with them and even the rule passes them over, which the batch's does not.

    Raises:
        ValueError: If both are given, the quantile is out of range or the scope unknown.
    """

    num_prefix_tokens: int
    quantile: float | None = None
    rule: OutlierRule | None = None
    scope: str = "image"

    def __post_init__(self) -> None:
        _check_choice("rule", self.quantile, self.rule)
        _check_scope(self.scope)

    def refine(self, hidden_states: Tensor) -> Tensor:
        """Tokens (B, P+N, D) -> same shape and dtype; prefix and short patch tokens bit for bit as they came."""
        prefix, patches = split_tokens(hidden_states, self.num_prefix_tokens)
        norms, thresholds = _norms_and_thresholds(patches, self)
        clipped = patches.float() * (thresholds / norms).unsqueeze(-1)
        return _replace(prefix, patches, norms > thresholds, clipped)


@dataclass(frozen=True)
class NeighborMean:
    """Replaces outlier patch tokens by the mean of the inlier tokens among their 8 neighbours on the grid.

    Where all neighbours are outliers too, the mean is taken over the inliers on the nearest ring that has some; an
    image without any inlier is left as it is.

    Args:
        num_prefix_tokens: Leading tokens that are never refined, P.
        grid: (rows, columns) of the patches.
        quantile: In (0, 1): an outlier is longer than this quantile of the patch norms.
        rule: What counts as an outlier, as in :class:`ClipNorm`. Neither of the two: ``OutlierRule()``.
        scope: Whose patches the threshold is taken over, as in :class:`ClipNorm`.

    Raises:
        ValueError: If both are given, the quantile is out of range or the scope unknown.
    """

    num_prefix_tokens: int
    grid: tuple[int, int]
    quantile: float | None = None
    rule: OutlierRule | None = None
    scope: str = "image"

    def __post_init__(self) -> None:
        _check_choice("rule", self.quantile, self.rule)
        _check_scope(self.scope)

    def refine(self, hidden_states: Tensor) -> Tensor:
        """Tokens (B, P+N, D) -> same shape and dtype; prefix tokens and inliers bit for bit as they came.

        Raises:
            ValueError: If N is not rows * columns.
        """
        prefix, patches = split_tokens(hidden_states, self.num_prefix_tokens)
        if patches.shape[1] != self.grid[0] * self.grid[1]:
            raise ValueError(
                f"{patches.shape[1]} patch tokens do not fill a grid of {self.grid[0]} x {self.grid[1]}; give the "
                "`grid` of the images that are refined"
            )
        norms, thresholds = _norms_and_thresholds(patches, self)
        outliers = norms > thresholds
        outliers &= ~outliers.all(dim=-1, keepdim=True)
        weights = _nearest(~outliers, self.grid)
        with torch.autocast(patches.device.type, enabled=False):  # it would take the product in half precision
            mean = weights @ patches.float() / weights.sum(dim=-1, keepdim=True)
        return _replace(prefix, patches, outliers, mean)


def make_refiner(
    name: str,
    view: ViTView,
    image_size: tuple[int, int],
    *,
    quantile: float | None = None,
    mad_factor: float | None = None,
    scope: str = "image",
) -> ClipNorm | NeighborMean:
    """The refiner of this name for a teacher.

    Args:
        name: One of ``REFINERS``.
        view: View of the teacher.
        image_size: (height, width) of the teacher's images in pixels.
        quantile: As in :class:`ClipNorm`.
        mad_factor: k of an :class:`OutlierRule`, > 0. Neither of the two: ``OutlierRule()``.
        scope: As in :class:`ClipNorm`.

    Raises:
        ValueError: If the name or the scope is unknown, both thresholds are given, or one is out of range.
    """
    if name not in REFINERS:
        raise ValueError(f"`name` must be one of {', '.join(map(repr, REFINERS))}, got {name!r}")
    check_refiner_settings(quantile=quantile, mad_factor=mad_factor, scope=scope)
    rule = None if mad_factor is None else OutlierRule(mad_factor=mad_factor)
    if name == "clip_norm":
        return ClipNorm(view.num_prefix_tokens, quantile, rule, scope)
    return NeighborMean(view.num_prefix_tokens, view.grid(*image_size), quantile, rule, scope)


def check_refiner_settings(
    *, quantile: float | None = None, mad_factor: float | None = None, scope: str = "image"
) -> None:
    """Checks the settings of :func:`make_refiner` before there is a teacher.

    Raises:
        ValueError: If the scope is unknown, both thresholds are given, or one is out of range.
    """
    _check_choice("mad_factor", quantile, mad_factor)
    _check_scope(scope)
    if mad_factor is not None:
        OutlierRule(mad_factor=mad_factor)


def _check_choice(other: str, quantile: float | None, value: object) -> None:
    if quantile is not None and value is not None:
        raise ValueError(f"`quantile` and `{other}` must not both be given, got {quantile!r} and {value!r}; drop one")
    if quantile is not None and not 0 < quantile < 1:
        raise ValueError(f"`quantile` must lie in (0, 1), got {quantile!r}; `{other}` needs no share of outliers")


def _check_scope(scope: str) -> None:
    if scope not in SCOPES:
        raise ValueError(f"`scope` must be one of {', '.join(map(repr, SCOPES))}, got {scope!r}")


def _norms_and_thresholds(patches: Tensor, refiner: ClipNorm | NeighborMean) -> tuple[Tensor, Tensor]:
    """Norms (B, N) of patch tokens (B, N, D) and the threshold of each image (B, 1) or of all (1, 1), float32."""
    norms = patches.float().norm(dim=-1)
    seen = norms if refiner.scope == "image" else norms.flatten().unsqueeze(0)
    if refiner.quantile is not None:
        return norms, torch.quantile(seen, refiner.quantile, dim=-1, keepdim=True)
    return norms, (refiner.rule or OutlierRule()).thresholds(seen)[0]


def _replace(prefix: Tensor, patches: Tensor, outliers: Tensor, replacement: Tensor) -> Tensor:
    patches = torch.where(outliers.unsqueeze(-1), replacement.to(patches.dtype), patches)
    return torch.cat([prefix, patches], dim=1)


def _nearest(inliers: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which inliers (B, N) are the nearest to each patch, on a square ring around it: 0 or 1, (B, N, N)."""
    place = torch.arange(grid[0] * grid[1], device=inliers.device)
    row, column = place // grid[1], place % grid[1]
    distance = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs())
    usable = inliers.unsqueeze(1)
    nearest = distance.where(usable, max(grid)).amin(dim=-1, keepdim=True)
    return (usable & (distance == nearest)).float()
