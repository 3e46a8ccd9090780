"""Tiny random models of every supported family, and what their structural view must contain. All offline."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

HIDDEN, BLOCKS, PATCH, IMAGE = 32, 4, 8, 32
SIZES = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": IMAGE,
    "patch_size": PATCH,
}
RELATIVE_BIAS = {"use_relative_position_bias": True, "use_mask_token": False}


@dataclass(frozen=True)
class Family:
    """How to build a tiny model and what its view must contain.

    ``gate``: whether a gated MLP stores its gate "separate" from the value weights or "packed" with them.
    """

    build: Callable[[], nn.Module]
    path: str
    prefix: int = 1
    mlp_width: int = 64
    gate: str | None = None
    layer_scale: bool = False
    final_norm: bool = True
    fixed_size: bool = False
    num_input_projections: int = 4
    centered: bool = True


def timm_model(name: str, **extra: object) -> hf.TimmWrapperModel:
    pytest.importorskip("timm")
    sizes = {"img_size": IMAGE, "patch_size": PATCH, "embed_dim": HIDDEN, "depth": BLOCKS, "num_heads": 2}
    return hf.TimmWrapperModel(hf.TimmWrapperConfig(architecture=name, model_args={**sizes, **extra}))


def _timm_family(name: str, **expected: object) -> Family:
    values = {"mlp_width": 128, "fixed_size": True, "num_input_projections": 2, **expected}
    extra = values.pop("extra", {})
    return Family(lambda: timm_model(name, **extra), "timm_model.blocks", **values)


FAMILIES = {
    "vit": Family(lambda: hf.ViTModel(hf.ViTConfig(**SIZES), add_pooling_layer=False), "layers"),
    "vit_classifier": Family(lambda: hf.ViTForImageClassification(hf.ViTConfig(**SIZES)), "vit.layers"),
    "deit": Family(lambda: hf.DeiTModel(hf.DeiTConfig(**SIZES), add_pooling_layer=False), "layers", prefix=2),
    "dinov2": Family(lambda: hf.Dinov2Model(hf.Dinov2Config(**SIZES, mlp_ratio=2)), "encoder.layer", layer_scale=True),
    "dinov2_registers": Family(
        lambda: hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**SIZES, mlp_ratio=2)),
        "encoder.layer",
        prefix=5,
        layer_scale=True,
    ),
    "dinov2_giant": Family(
        lambda: hf.Dinov2Model(hf.Dinov2Config(**SIZES, mlp_ratio=2, use_swiglu_ffn=True)),
        "encoder.layer",
        mlp_width=48,
        gate="separate",
        layer_scale=True,
        num_input_projections=5,
    ),
    "dinov3": Family(
        lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**SIZES, num_register_tokens=4)),
        "model.layer",
        prefix=5,
        layer_scale=True,
    ),
    "dinov3_gated": Family(
        lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**SIZES, num_register_tokens=4, use_gated_mlp=True)),
        "model.layer",
        prefix=5,
        gate="separate",
        layer_scale=True,
        num_input_projections=5,
    ),
    "clip": Family(lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**SIZES)), "encoder.layers"),
    "siglip": Family(lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**SIZES)), "encoder.layers", prefix=0),
    "beit": Family(
        lambda: hf.BeitModel(hf.BeitConfig(**SIZES, **RELATIVE_BIAS), add_pooling_layer=False),
        "layers",
        layer_scale=True,
        final_norm=False,
    ),
    "data2vec": Family(
        lambda: hf.Data2VecVisionModel(hf.Data2VecVisionConfig(**SIZES, **RELATIVE_BIAS), add_pooling_layer=False),
        "encoder.layer",
        layer_scale=True,
        final_norm=False,
    ),
    "vit_msn": Family(lambda: hf.ViTMSNModel(hf.ViTMSNConfig(**SIZES)), "layers"),
    "ijepa": Family(lambda: hf.IJepaModel(hf.IJepaConfig(**SIZES), add_pooling_layer=False), "layers", prefix=0),
    "vit_mae": Family(lambda: hf.ViTMAEModel(hf.ViTMAEConfig(**SIZES, mask_ratio=0.0)), "layers"),
    "timm_vit": _timm_family("vit_tiny_patch16_224"),
    "timm_vit_dynamic": _timm_family("vit_tiny_patch16_224", fixed_size=False, extra={"dynamic_img_size": True}),
    "timm_vit_rmsnorm": _timm_family("vit_tiny_patch16_224", centered=False, extra={"norm_layer": "rmsnorm"}),
    "timm_deit3": _timm_family("deit3_small_patch16_224", layer_scale=True),
    "timm_dinov2": _timm_family("vit_small_patch14_dinov2", layer_scale=True),
    "timm_eva_packed": _timm_family("eva02_tiny_patch14_224", mlp_width=85, gate="packed"),
    "timm_eva_separate": _timm_family(
        "eva02_tiny_patch14_224",
        mlp_width=85,
        gate="separate",
        num_input_projections=5,
        extra={"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True},
    ),
}

every_family = pytest.mark.parametrize("family", FAMILIES)


def fill(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fills every parameter with random values, so that gains, biases, prefix tokens and LayerScale have an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = 0.2 * torch.randn(parameter.shape, generator=generator)
            parts = name.lower().split(".")
            is_gain = any("norm" in part for part in parts) and name.endswith("weight")
            is_scale = any(part.startswith(("lambda", "gamma")) for part in parts)
            parameter.copy_(values + 1.0 if is_gain or is_scale else values)
    return model.eval()


def tiny(family: str, seed: int = 0) -> nn.Module:
    """A new model of the family in eval mode, the same one for the same seed."""
    torch.manual_seed(seed)
    return fill(FAMILIES[family].build(), seed)


def tiny_vit(num_blocks: int = BLOCKS, **config: object) -> hf.ViTModel:
    """A new plain ViT in eval mode."""
    config = hf.ViTConfig(**{**SIZES, "num_hidden_layers": num_blocks, **config})
    return fill(hf.ViTModel(config, add_pooling_layer=False))


def images(height: int = IMAGE, width: int = IMAGE, batch: int = 2, seed: int = 0) -> Tensor:
    """Random pixel values (batch, 3, height, width)."""
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


TEXT = {key: SIZES[key] for key in ("hidden_size", "num_attention_heads", "intermediate_size")}
TEXT = {**TEXT, "num_hidden_layers": 2, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
_NO_BLOCKS = "it has no list of transformer blocks (an attention and an MLP of two linear layers)"
_NO_PATCHES = "it has no patch embedding (a Conv2d whose output has the blocks' width) on a fixed grid"

REFUSED = {
    "cnn": (
        lambda: hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
        f"ResNetModel is not supported: {_NO_BLOCKS}",
    ),
    "convnext": (
        lambda: hf.ConvNextModel(hf.ConvNextConfig(depths=[1, 1], hidden_sizes=[8, 16], num_stages=2)),
        f"ConvNextModel is not supported: {_NO_BLOCKS}",
    ),
    "text": (lambda: hf.BertModel(hf.BertConfig(**TEXT)), f"BertModel is not supported: {_NO_PATCHES}"),
    "clip_text": (
        lambda: hf.CLIPTextModel(hf.CLIPTextConfig(**TEXT)),
        f"CLIPTextModel is not supported: {_NO_PATCHES}",
    ),
    "naflex": (
        lambda: hf.Siglip2VisionModel(
            hf.Siglip2VisionConfig(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patch_size=8
            )
        ),
        f"Siglip2VisionModel is not supported: {_NO_PATCHES}",
    ),
    "timm_naflex": (
        lambda: timm_model("naflexvit_base_patch16_gap"),
        f"TimmWrapperModel is not supported: {_NO_PATCHES}",
    ),
    "shuffling_mae": (
        lambda: hf.ViTMAEModel(hf.ViTMAEConfig(**SIZES)),
        "ViTMAEModel is not supported: it drops and shuffles patches; load it with `mask_ratio=0.0` in its config",
    ),
    "swin": (
        lambda: hf.SwinModel(
            hf.SwinConfig(embed_dim=16, depths=[2, 2], num_heads=[2, 2], image_size=32, patch_size=4, window_size=4)
        ),
        "SwinModel is not supported: its blocks are spread over several lists (encoder.layers.0.blocks, "
        "encoder.layers.1.blocks)",
    ),
}
