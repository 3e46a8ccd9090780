"""The structural view of a vision transformer: where its parts are."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from singer_hf.vit.blocks import InputProjection, attention_linears, check_plain, is_norm, mlp_linears, owner_of


@dataclass(frozen=True)
class ViTView:
    """Where the parts of a vision transformer are. Created by :func:`singer_hf.vit.structure.view_vit`.

    Attributes:
        backbone: The innermost module that maps ``pixel_values`` (B, 3, H, W) to tokens; call it positionally.
        blocks_path: Path of the list of blocks in the given model, for example ``"encoder.layer"``.
        blocks: The transformer blocks in order, without PEFT wrappers around them.
        hidden_size: Width D of the tokens.
        num_prefix_tokens: Number P of tokens before the patches: class, distillation and register tokens.
        num_class_tokens: Number of prefix tokens that are not registers; they come first.
        patch_embedding: The convolution that embeds the patches.
        final_norm: The norm after the last block, or None.
        image_size: (height, width) of the configured input in pixels, or None if the model does not define it.
    """

    backbone: nn.Module
    blocks_path: str
    blocks: tuple[nn.Module, ...]
    hidden_size: int
    num_prefix_tokens: int
    num_class_tokens: int
    patch_embedding: nn.Conv2d
    final_norm: nn.Module | None
    image_size: tuple[int, int] | None

    @property
    def num_blocks(self) -> int:
        """Number L of blocks."""
        return len(self.blocks)

    @property
    def patch_size(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""
        return self.patch_embedding.stride

    def block_name(self, index: int) -> str:
        """Path of block ``index`` in the model, as in ``named_modules``."""
        return f"{self.blocks_path}.{index}"

    def next_block(self, index: int) -> int:
        """Index of the block after block ``index``; the last block has none and stands in for its own next block."""
        return min(index + 1, self.num_blocks - 1)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches for an image of ``height`` x ``width`` pixels.

        Raises:
            ValueError: If the image is smaller than a patch.
        """
        conv = self.patch_embedding
        padding = (0, 0) if isinstance(conv.padding, str) else conv.padding
        sizes = zip((height, width), conv.kernel_size, conv.stride, padding, strict=True)
        rows, columns = ((size + 2 * pad - kernel) // stride + 1 for size, kernel, stride, pad in sizes)
        if min(rows, columns) < 1:
            patch = "{} x {}".format(*conv.kernel_size)
            raise ValueError(
                f"images must be at least as large as a patch of {patch} pixels, got {height} x {width}; set a larger "
                "size in the image processor"
            )
        return rows, columns

    def forward_kwargs(self, pixel_values: Tensor) -> dict:
        """Keyword arguments with which ``backbone`` accepts the size of ``pixel_values`` and keeps the patch order.

        Args:
            pixel_values: Images (B, 3, H, W).
        """
        parameters = inspect.signature(self.backbone.forward).parameters
        size, kwargs = tuple(pixel_values.shape[-2:]), {}
        if "interpolate_pos_encoding" in parameters and self.image_size not in (None, size):
            kwargs["interpolate_pos_encoding"] = True
        if "noise" in parameters:  # masked autoencoders sort the patches by it
            rows, columns = self.grid(*size)
            order = torch.arange(rows * columns, device=pixel_values.device, dtype=torch.float32)
            kwargs["noise"] = order.expand(pixel_values.shape[0], -1)  # `len` would fix a traced model's batch size
        return kwargs

    def mlp_layers(self, index: int) -> tuple[nn.Linear, nn.Linear]:
        """Input and output layer of the MLP of block ``index``; the input layer of a gated MLP is its value layer."""
        return tuple(linear for _, linear in mlp_linears(self.blocks[index])[-2:])

    def has_gated_mlp(self, index: int) -> bool:
        """Whether the MLP of block ``index`` multiplies its values by an activated gate."""
        linears = [linear for _, linear in mlp_linears(self.blocks[index])]
        return len(linears) > 2 or linears[0].out_features != linears[1].in_features

    def mlp_weights(self, index: int) -> tuple[Tensor, Tensor]:
        """Input (H, D) and output (D, H) weights of the MLP of block ``index``.

        Of a gated MLP these are the weights of its value path, the branch that is multiplied by the activated gate.
        Gate and value weights that are packed in one layer are split.

        Raises:
            ValueError: If the layers have adapters inside, such as LoRA.
        """
        check_plain(mlp_linears(self.blocks[index])[-2:])
        fc_in, fc_out = self.mlp_layers(index)
        weight, hidden = fc_in.weight, fc_out.in_features
        if weight.shape[0] == 2 * hidden:
            value_first = getattr(owner_of(self.blocks[index], fc_in), "gate_last", False)
            weight = weight[:hidden] if value_first else weight[hidden:]
        return weight, fc_out.weight

    def layer_scales(self, index: int) -> tuple[Tensor | None, Tensor | None]:
        """LayerScale vectors (D,) after the attention and after the MLP of block ``index``; None where absent."""
        scales = [
            parameter
            for name, parameter in self.blocks[index].named_parameters()
            if "attn." not in name and any(part.startswith(("lambda", "gamma")) for part in name.split("."))
        ]
        return (scales[0], scales[1]) if len(scales) > 1 else (scales[0] if scales else None, None)

    def input_projections(self, index: int) -> Iterator[InputProjection]:
        """Linear layers that block ``index`` applies to its normed tokens.

        These are the query, key and value layers after the first norm, and the MLP's input layers after the second.

        Raises:
            ValueError: If the block does not have one norm before the attention and one before the MLP, or its
                layers have adapters inside, such as LoRA.
        """
        block = self.blocks[index]
        norms = [module for module in block.children() if is_norm(module)]
        if len(norms) != 2 or "post" in type(block).__name__.lower():
            raise ValueError(
                f"{type(block).__name__} is not a pre-norm block with two norms, so it has no input projections; use "
                '`nullspace_source="mlp"` or "jacobian"'
            )
        attention_inputs = attention_linears(block)[:-1]  # the last one is the output projection
        mlp_inputs = [item for item in mlp_linears(block) if item[1].in_features == self.hidden_size]
        check_plain([*attention_inputs, *mlp_inputs])
        for norm, linears in ((norms[0], attention_inputs), (norms[1], mlp_inputs)):
            centered = "rms" not in type(norm).__name__.lower()
            for name, linear in linears:
                yield InputProjection(name, linear.weight, getattr(norm, "weight", None), centered)
