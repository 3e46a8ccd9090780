"""A tiny ViT whose high-norm tokens are known exactly: patches, blocks, norms and direction."""

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from singer_hf import SingerConfig
from singer_hf.vit.structure import view_vit

GRID, PATCH, WIDTH, BLOCKS = (4, 6), 8, 32, 4
IMAGE = (GRID[0] * PATCH, GRID[1] * PATCH)
BASE, LENGTH, DIRECTION = 3.0, 40.0, 7
# Block 1 adds a long vector to these three patches; block 2 removes it from the last one.
LASTING, FLEETING = (0, 8), (23,)
PLANTED = (*LASTING, *FLEETING)


def planted_vit() -> ViTModel:
    """Builds a ViT in which only one MLP unit of block 1 and one of block 2 change the tokens.

    The tokens do not depend on the image: all patches have norm 3, along channel 0. Block 1 adds 40 along channel 7
    to the planted patches (which lie along channel 1 or 2, so that a unit can select them), block 2 removes it from
    the fleeting one.
    """
    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=IMAGE,
        patch_size=PATCH,
    )
    model = ViTModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name or name.endswith("bias"):
                parameter.zero_()
        tokens = model.get_parameter("embeddings.position_embeddings")[0]
        tokens[:, 0] = BASE
        tokens[1:][list(PLANTED)] = 0.0
        tokens[1:][list(LASTING), 1] = BASE
        tokens[1:][list(FLEETING), 2] = BASE
        _plant(model, 1, {1: 10.0, 2: 10.0}, -30.0, tokens[1 + FLEETING[0]], LENGTH)
        grown = tokens[1 + FLEETING[0]].clone()
        grown[DIRECTION] += LENGTH
        _plant(model, 2, {2: 100.0}, -10.0, grown, -LENGTH)
    return model


def _plant(model: ViTModel, block: int, weights: dict[int, float], bias: float, token: Tensor, length: float) -> None:
    """Sets unit 0 of a block's MLP, which adds ``length`` along ``DIRECTION`` to ``token``."""
    first, second = view_vit(model).mlp_layers(block)
    for channel, value in weights.items():
        first.weight[0, channel] = value
    first.bias[0] = bias
    activation = F.gelu(F.layer_norm(token, (WIDTH,), eps=1e-12) @ first.weight[0] + bias)
    second.weight[DIRECTION, 0] = length / activation


def expected_tokens(block: int) -> Tensor:
    """Returns the patch tokens (24, 32) after a block."""
    tokens = torch.zeros(GRID[0] * GRID[1], WIDTH, dtype=torch.float64)
    tokens[:, 0] = BASE
    tokens[list(PLANTED)] = 0.0
    tokens[list(LASTING), 1] = BASE
    tokens[list(FLEETING), 2] = BASE
    if block >= 1:
        tokens[list(LASTING), DIRECTION] = LENGTH
    if block == 1:
        tokens[list(FLEETING), DIRECTION] = LENGTH
    return tokens


def planted_images(batch: int = 5, seed: int = 0) -> Tensor:
    """Returns noise of standard deviation about 1 with constant planted patches, (batch, 3, 32, 48)."""
    images = torch.randn(batch, 3, *IMAGE, generator=torch.Generator().manual_seed(seed))
    for place in PLANTED:
        row, column = divmod(place, GRID[1])
        images[:, :, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = 0.5
    return images


def planted_adapter() -> PeftModel:
    """Returns :func:`planted_vit` with adapters after blocks 1 and 3 that remove channel ``DIRECTION``."""
    config = SingerConfig(r=1, layers_to_transform=[1, 3], nullspace_source="block", gate="none")
    model = get_peft_model(planted_vit(), config)
    for layer in model.base_model.singer_layers.values():
        with torch.no_grad():
            layer.singer_down["default"].weight.zero_()[0, DIRECTION] = 1.0
            layer.singer_up["default"].weight.zero_()[DIRECTION, 0] = -1.0
    return model
