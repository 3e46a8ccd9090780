"""Evaluation protocols by name, with the source of every number.

``singer`` follows the README and ``tools/lineval`` of AIRLABkhu/SiNGER at caf50ec. ``dinov2`` follows ``dinov2/eval``
of facebookresearch/dinov2 at b8931f7 and section 7 of its paper (arXiv:2304.07193).
"""

from dataclasses import dataclass

from singer_hf.evaluation.heads.fit_settings import FitSettings
from singer_hf.evaluation.heads.linear_heads import Tokens


@dataclass(frozen=True)
class EvaluationProtocol:
    """Settings with which frozen features are evaluated.

    Attributes:
        name: Name of the protocol.
        image_size: Height and width of the crop in pixels, for classification and depth.
        resize_size: Length of the shorter side before the centre crop, in pixels.
        norm: Whether features are taken after the final norm.
        choices: Inputs of the linear heads: (tokens, number of last blocks).
        learning_rates: Peak learning rates that are compared, for the batch size of ``classification`` and ``dense``.
        classification: Settings of the training of linear heads.
        dense: Settings of the training of segmentation and depth heads.
        batch_norm: Whether the segmentation head starts with BatchNorm.
        window: (height, width) of the segmentation window in pixels, also the training crop.
        stride: (vertical, horizontal) steps of the window in pixels.
        depth_bins: Number of bins of depth.
        max_depth: Depth of the last bin in metres.
        depth_temperature: Temperature of the softmax that averages the bins.
        knn_neighbours: Neighbours of the kNN vote.
        knn_temperature: Temperature of the kNN vote.
        rates_batch_size: Batch size of the rates of linear heads; with another one they are scaled in proportion.
            None never scales them.
        all_classes: Whether a head that is reused on fewer classes predicts among all its classes, or among those.
    """

    name: str
    image_size: int
    resize_size: int
    norm: bool
    choices: tuple[tuple[Tokens, int], ...]
    learning_rates: tuple[float, ...]
    classification: FitSettings
    dense: FitSettings
    batch_norm: bool
    window: tuple[int, int]
    stride: tuple[int, int]
    depth_bins: int = 256
    max_depth: float = 10.0
    depth_temperature: float = 1.0
    knn_neighbours: int = 20
    knn_temperature: float = 0.07
    rates_batch_size: int | None = None
    all_classes: bool = True


# lineval/utils.py: weight decay 1e-6; the flag `--momentum` exists but is not given to SGD. Cosine to 1e-8 per step.
# README: `--batch-size 64 -lr 0.5`, 150 epochs for ImageNet, 200 for ADE20K and NYUd. Their numbers are those of the
# best epoch on the test set; ours are those of the last epoch.
_SINGER_SGD = {"batch_size": 64, "momentum": 0.0, "weight_decay": 1e-6, "final_rate": 1e-8}

SINGER = EvaluationProtocol(
    name="singer",
    image_size=224,  # lineval/utils.py: --img-size
    resize_size=256,  # lineval/imagenet.py: int(img_size * 256 / 224)
    norm=False,  # paper, Table 1, and lineval/*.py: the final block before the norm, feats[-1]
    choices=(("cls", 1),),  # lineval/imagenet.py: --mode cls
    learning_rates=(0.5,),
    classification=FitSettings(epochs=150, **_SINGER_SGD),
    dense=FitSettings(epochs=200, **_SINGER_SGD),
    batch_norm=False,  # lineval/ade20k.py: a 1x1 convolution alone, logits upsampled bilinearly
    window=(224, 224),  # dataset/ade20k.py resizes whole test images to img_size: one window
    stride=(224, 224),
    depth_bins=256,  # lineval/nyud.py: 256 bins from 0 to 10 m on patch + CLS
    max_depth=10.0,
    # README: `test/nyud.py -t 0.6`. That script refuses `-t 0.6` (`-t` is the checkpoint's tag there); its flag for
    # the temperature is `-T`, 0.03 by default. The README must mean the temperature, and 0.6 suits a head trained
    # with a plain cross-entropy: 0.03 picks a single bin. Which of them gave the paper's numbers is not stated.
    depth_temperature=0.6,
    all_classes=True,  # lineval/test/imagenet_r.py: the best of all 1000 classes
)

_DINOV2_BATCH = 128  # eval/linear.py: per GPU; on one GPU the batch

DINOV2 = EvaluationProtocol(
    name="dinov2",
    image_size=224,  # data/transforms.py: make_classification_eval_transform
    resize_size=256,
    norm=True,  # models/vision_transformer.py: get_intermediate_layers(norm=True)
    choices=(("cls", 1), ("cls+mean", 1), ("cls", 4), ("cls+mean", 4)),  # eval/linear.py: n_last_blocks_list = [1, 4]
    # eval/linear.py: --learning-rates, scaled by batch / 256 in scale_lr.
    learning_rates=tuple(
        rate * _DINOV2_BATCH / 256
        for rate in (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
    ),
    # eval/linear.py: 10 epochs of 1250 steps, SGD momentum 0.9, no weight decay, cosine to 0.
    classification=FitSettings(epochs=10, batch_size=_DINOV2_BATCH, momentum=0.9),
    # Paper: segmentation on 512 px crops. Their dense heads were trained by mmsegmentation, whose settings are not in
    # the repository: the values of this line are ours, with the same rates as above.
    dense=FitSettings(epochs=10, batch_size=16, momentum=0.9),
    batch_norm=True,  # eval/segmentation/models/decode_heads/linear_head.py: BNHead
    window=(512, 512),
    stride=(341, 341),  # two thirds of the window, mmsegmentation's usual step for ADE20K
    depth_bins=256,  # paper, section 7.4: 256 uniform bins on patch + CLS
    max_depth=10.0,
    depth_temperature=1.0,  # theirs normalises relu(logits) linearly instead of by a softmax
    rates_batch_size=_DINOV2_BATCH,
    all_classes=False,  # eval/linear.py: --test-class-mapping-fpaths picks the 200 columns of ImageNet-R
)

PROTOCOLS = {protocol.name: protocol for protocol in (SINGER, DINOV2)}


def get_protocol(name: str) -> EvaluationProtocol:
    """Returns the protocol called ``name``.

    Raises:
        ValueError: If there is none.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"`protocol` must be one of {sorted(PROTOCOLS)}, got {name!r}")
    return PROTOCOLS[name]
