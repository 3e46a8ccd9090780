"""Normalisation of a teacher's tokens before they are compared with the student's."""

import torch
from torch import Tensor, nn

from singer_hf.artifacts.outliers import OutlierRule, token_norms
from singer_hf.distillation.losses import normalize_tokens, standardize_channels
from singer_hf.vit.running_statistics import SettlingStatistics, mean_over_processes, settling_weight

# Deviations below this share of a block's mean deviation are raised to it: constant channels must not be amplified.
_SMALLEST_DEVIATION = 0.01


class NoNorm(nn.Module):
    """Leaves the targets in the teacher's own units (paper)."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, P+N, D) as they are."""
        return tokens

    def observe(self, tokens: Tensor) -> None:
        """Has no statistics; ``tokens`` are raw ones (B, P+N, D)."""


class TokenNorm(NoNorm):
    """LayerNorm of each token without gain and bias."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, P+N, D) -> tokens of mean 0 and variance 1 over their channels, float32."""
        return normalize_tokens(tokens)


class ChannelNorm(SettlingStatistics):
    """Standardises every channel with mean and deviation of a block's inlier patch tokens.

    Class tokens have statistics of their own, as they are no patches. All statistics are estimated on raw tokens by
    :meth:`observe` over the first batches of a training and fixed afterwards. Outliers by
    :class:`singer_hf.artifacts.outliers.OutlierRule`, with median and MAD of the batch, do not enter them.

    Args:
        hidden_size: D.
        num_prefix_tokens: P.
        device: Device of the statistics.

    Attributes:
        mean: (P+1, D), one row for each prefix token and one for the patches, buffer.
        variance: (P+1, D), buffer.
        num_batches: Batches that both were estimated from, scalar buffer.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, hidden_size: int, num_prefix_tokens: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.num_prefix_tokens, self.rule = num_prefix_tokens, OutlierRule()
        self.register_buffer("mean", torch.zeros(num_prefix_tokens + 1, hidden_size, device=device))
        self.register_buffer("variance", torch.ones(num_prefix_tokens + 1, hidden_size, device=device))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.long, device=device))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, P+N, D) -> standardised tokens, float32."""
        mean, deviation = self._rows(self.mean, tokens), self._rows(self._deviation(), tokens)
        return standardize_channels(tokens, mean, deviation)

    @torch.no_grad()
    def observe(self, tokens: Tensor) -> None:
        """Adds the raw tokens (B, P+N, D) of one training batch to the statistics, over all processes."""
        if self.is_settled:
            return
        local, local_variance = self._measure(tokens.float())
        mean = mean_over_processes(local)
        variance = mean_over_processes(local_variance + (local - mean).square())
        weight = settling_weight(self.num_batches)
        # The variance around a common mean: within both parts, and between their means.
        between = (mean - self.mean).square() * weight * (1 - weight)
        self.variance.lerp_(variance, weight).add_(between)
        self.mean.lerp_(mean, weight)
        self.num_batches += weight > 0

    def _measure(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        prefix, patches = tokens.split([self.num_prefix_tokens, tokens.shape[1] - self.num_prefix_tokens], dim=1)
        norms = token_norms(patches)
        inliers = (norms <= self.rule.thresholds(norms.flatten())[0]).unsqueeze(-1)
        count = inliers.sum().clamp(min=1)
        mean = (patches * inliers).sum(dim=(0, 1)) / count
        variance = ((patches - mean).square() * inliers).sum(dim=(0, 1)) / count
        own = prefix.mean(dim=0)
        own_variance = (prefix - own).square().mean(dim=0)
        return torch.cat([own, mean[None]]), torch.cat([own_variance, variance[None]])

    def _deviation(self) -> Tensor:
        deviation = self.variance.sqrt()
        return deviation.maximum(_SMALLEST_DEVIATION * deviation[-1].mean()).clamp(min=1e-12)

    def _rows(self, values: Tensor, tokens: Tensor) -> Tensor:
        """The row of every token, (P+N, D): its own for prefix tokens, the last one for patches."""
        patches = values[-1:].expand(tokens.shape[1] - self.num_prefix_tokens, -1)
        return torch.cat([values[:-1], patches])


class ChannelTokenNorm(ChannelNorm):
    """Divides every channel by its deviation, then normalises every token.

    Weak channels count as much as strong ones, and no token counts more than another, whatever its length. The mean
    is not subtracted: a token close to it would be left with its noise, which the LayerNorm would amplify.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, P+N, D) -> tokens of mean 0 and variance 1 over their scaled channels, float32."""
        return normalize_tokens(tokens.float() / self._rows(self._deviation(), tokens))


def make_target_norm(
    kind: str, hidden_size: int, num_prefix_tokens: int, device: torch.device | None = None
) -> NoNorm | ChannelNorm:
    """Returns the normalisation of one block's targets.

    Args:
        kind: One of :data:`singer_hf.distillation.losses.TARGET_NORMS`.
        hidden_size: Width D of the teacher.
        num_prefix_tokens: P of the teacher.
        device: Device of the statistics.
    """
    if kind in ("channel", "channel_token"):
        norm = ChannelNorm if kind == "channel" else ChannelTokenNorm
        return norm(hidden_size, num_prefix_tokens, device)
    return TokenNorm() if kind == "token" else NoNorm()
