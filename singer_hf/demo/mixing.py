"""MixUp and CutMix of a training batch."""

import torch
from torch import Tensor
from torchvision.transforms.v2 import CutMix, MixUp


class Mixing:
    """Mixes every image of a batch with the one before it, by MixUp or CutMix, and their classes alike.

    If both are on, one of them is drawn per batch, each with probability 1/2. All random numbers are from PyTorch's
    global generator of the CPU, which the Trainer stores in every checkpoint. The processes of a run mix in the same
    proportions, because the Trainer seeds them alike.

    MixUp: arXiv 1710.09412; CutMix: arXiv 1905.04899.

    Args:
        mixup_alpha: Both parameters of the Beta distribution of MixUp's share, >= 0; 0 turns MixUp off.
        cutmix_alpha: The same for the share of the area that CutMix keeps; 0 turns CutMix off.
        num_classes: Number of classes K.

    Raises:
        ValueError: If a parameter is negative.
    """

    def __init__(self, mixup_alpha: float, cutmix_alpha: float, num_classes: int) -> None:
        check_alpha("mixup_alpha", mixup_alpha)
        check_alpha("cutmix_alpha", cutmix_alpha)
        chosen = ((MixUp, mixup_alpha), (CutMix, cutmix_alpha))
        self.transforms = [kind(alpha=float(alpha), num_classes=num_classes) for kind, alpha in chosen if alpha > 0]

    def __call__(self, pixel_values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mixed images (B, 3, H, W) and probabilities (B, K); without MixUp and CutMix both as they are.

        Args:
            pixel_values: Images (B, 3, H, W).
            labels: Classes (B,), int64.
        """
        if not self.transforms:
            return pixel_values, labels
        place = int(torch.randint(len(self.transforms), ())) if len(self.transforms) > 1 else 0
        return self.transforms[place](pixel_values, labels)


def check_alpha(name: str, value: float) -> None:
    """Checks a parameter of MixUp or CutMix.

    Raises:
        ValueError: If it is negative, infinite or not a number.
    """
    if not 0 <= value < float("inf"):
        raise ValueError(f"`{name}` must be 0 or more, got {value!r}; 0 turns it off")
