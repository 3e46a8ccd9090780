"""L_outlier and L_info of one refined block: what trains an adapter, with a student or alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from singer_hf.artifacts.outliers import OutlierRule, token_norms
from singer_hf.distillation.defaults import OBJECTIVE
from singer_hf.distillation.losses import (
    check_singer_settings,
    info_loss,
    length_unit,
    neighbor_loss,
    outlier_loss,
)
from singer_hf.tuner.layer import SingerLayer
from singer_hf.vit.running_statistics import process_place


@dataclass(frozen=True)
class AdapterObjective:
    """The settings of the terms that train an adapter, and the terms of one block.

    Attributes:
        outlier_weight: λ_outlier, >= 0.
        info_weight: λ_info, >= 0.
        outlier_quantile: γ in (0, 1).
        outlier_loss: ``"absolute"`` (paper), ``"relative"`` or ``"neighbors"``.
        info_loss: ``"gram"`` (paper) or ``"reference"``.
        info_share: Share of the images that L_info is taken of in a training step, in (0, 1], at least one image.

    Raises:
        ValueError: If a value is out of its range.
    """

    outlier_weight: float = OBJECTIVE["outlier_weight"]
    info_weight: float = OBJECTIVE["info_weight"]
    outlier_quantile: float = OBJECTIVE["outlier_quantile"]
    outlier_loss: str = OBJECTIVE["outlier_loss"]
    info_loss: str = OBJECTIVE["info_loss"]
    info_share: float = OBJECTIVE["info_share"]

    def __post_init__(self) -> None:
        check_singer_settings(
            self.outlier_weight,
            self.info_weight,
            self.outlier_quantile,
            self.info_loss,
            self.outlier_loss,
            self.info_share,
        )

    @property
    def weights(self) -> dict[str, float]:
        """Name of each term in the log -> its weight."""
        return {"outlier_loss": self.outlier_weight, "info_loss": self.info_weight}

    def draw_images(self, num_images: int, device: torch.device) -> Tensor | None:
        """Indices (K,) of the images that L_info of this step is taken of, other ones in every step; None: all.

        Every image is as likely as any other, so the expectation of L_info, a mean over images, is that of all. They
        are drawn by torch's generator. The generators of several processes are in the same state, so each process
        draws for all of them and takes its own images.

        Args:
            num_images: Images in the batch of this process.
            device: Device of the images.
        """
        number = max(1, round(self.info_share * num_images))
        if number == num_images:
            return None
        rank, world = process_place()
        return torch.rand(world, num_images, device=device)[rank].argsort()[:number]

    def outlier_term(self, layer: SingerLayer, refined: Tensor, raw: Tensor, grid: tuple[int, int]) -> Tensor:
        """L_outlier of one block, scalar.

        Args:
            layer: The refined block.
            refined: Patch tokens (B, N, D) of F̂.
            raw: Patch tokens (B, N, D) of F.
            grid: (rows, columns) of the patches.
        """
        unit = 1.0 if self.outlier_loss == "absolute" else length_unit(raw)
        if self.outlier_loss == "neighbors":
            return neighbor_loss(refined, raw, artifacts(layer, raw), grid, unit)
        return outlier_loss(refined, self.outlier_quantile, unit)

    def info_term(
        self, layer: SingerLayer, following_refined: Tensor, following_raw: Tensor, raw: Tensor, num_prefix_tokens: int
    ) -> Tensor:
        """L_info of one block, scalar. With a gate only ordinary patches are compared: artifacts are not to be kept.

        Args:
            layer: The refined block.
            following_refined: Tokens (B, P+N, D) that follow from F̂.
            following_raw: Tokens (B, P+N, D) that follow from F.
            raw: Tokens (B, P+N, D) of F.
            num_prefix_tokens: P.
        """
        shares = layer.gate_shares(raw[:, num_prefix_tokens:])
        kept = None if shares is None else shares == 0
        return info_loss(following_refined, following_raw, num_prefix_tokens, self.info_loss, kept)


def artifacts(layer: SingerLayer, raw_patches: Tensor) -> Tensor:
    """True at the artifacts among raw patch tokens: those that the gates refine.

    Without a gate they are the outliers by the outlier rule, each image's own, so that they do not depend on how a
    batch is split.

    Args:
        layer: The refined block.
        raw_patches: Patch tokens (B, N, D).

    Returns:
        Bool (B, N).
    """
    shares = layer.gate_shares(raw_patches)
    if shares is not None:
        return shares > 0
    return OutlierRule().mask(token_norms(raw_patches))
