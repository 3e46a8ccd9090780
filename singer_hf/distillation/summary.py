"""What a distillation is going to do, in words, before its first step."""

from typing import TYPE_CHECKING

from torch import nn

from singer_hf.baselines.registers import TestTimeRegisters
from singer_hf.tuner.model import RELATIVE_TOLERANCE
from singer_hf.tuner.nullspace import Spectrum
from singer_hf.tuner.nullspace_sources import NULLSPACE_SOURCES, source_gram
from singer_hf.vit.structure import ViTView

if TYPE_CHECKING:
    from singer_hf.distillation.distiller import SingerDistiller


def distillation_plan(distiller: "SingerDistiller", method: str | None = None) -> str:
    """Blocks paired, shapes, prefix tokens, parameters trained and frozen, rank and effective null dimension.

    Args:
        distiller: The composite.
        method: What it does, in words. None: as the teacher's adapters say.
    """
    view, reader, images = distiller.teacher_view, distiller.student_reader, distiller.teacher_input
    if method is None:
        method = _method(distiller)
    common = min(reader.num_class_tokens, view.num_class_tokens)
    lines = [
        f"method: {method}",
        f"teacher: {type(view.backbone).__name__}, {view.num_blocks} blocks, width {view.hidden_size}, "
        f"{view.num_prefix_tokens} prefix tokens, images {_size(images.teacher_image_size)}, "
        f"patches {_size(images.grid)}",
        f"student: {type(distiller.student).__name__}, {reader.num_blocks} blocks, images {_size(images.image_size)}",
        f"compared: the patches and {common} class token(s)",
        *_pair_lines(distiller),
        *(_rank_line(distiller, i) for i in distiller.teacher_layers if distiller.has_adapters),
        f"trained: student {_millions(distiller.student)}, projectors {_millions(distiller.projectors)}, "
        f"adapters {_millions(distiller.teacher)}; frozen: teacher {_millions(distiller.teacher, trained=False)}",
    ]
    return "\n".join(lines)


def _method(distiller: "SingerDistiller") -> str:
    if distiller.has_adapters:
        return "SiNGER"
    if distiller.refines:
        return f"multi-layer feature distillation, targets cleaned by {distiller.refiner}"
    if has_test_time_registers(distiller.teacher_view):
        return "multi-layer feature distillation, targets cleaned by a test-time register"
    return "multi-layer feature distillation (FitNet), no refinement"


def has_test_time_registers(view: ViTView) -> bool:
    """Whether a model carries test-time registers (:mod:`singer_hf.baselines.registers`)."""
    hooks = view.patch_embedding._forward_pre_hooks.values()
    return any(isinstance(value, TestTimeRegisters) for hook in hooks for value in getattr(hook, "args", ()))


def _pair_lines(distiller: "SingerDistiller") -> list[str]:
    lines = []
    for i, j in zip(distiller.teacher_layers, distiller.student_layers, strict=True):
        grid, target = distiller.student_grids[i], distiller.teacher_input.grid
        resized = "" if grid == target else f", {_size(grid)} map interpolated to {_size(target)}"
        projector = distiller.projectors[str(i)]
        widths = f"{projector.in_features} -> {projector.out_features}"
        lines.append(f"  student block {j} -> teacher block {i}: projector {widths}{resized}")
    return lines


def _rank_line(distiller: "SingerDistiller", block: int) -> str:
    layer = distiller.singer_layers[block]
    rank = next(iter(layer.singer_down.values())).out_features
    dimensions = [
        f"{source} {Spectrum.of_gram(source_gram(distiller.teacher_view, block, source)).effective_null_dimension()}"
        for source in NULLSPACE_SOURCES
        if source != "jacobian"  # needs calibration images
    ]
    return (
        f"  adapter behind block {block}: r {rank}, effective null dimension (read below {RELATIVE_TOLERANCE} of the "
        f"most-read direction) by source: {', '.join(dimensions)}"
    )


def _size(pair: tuple[int, int]) -> str:
    return f"{pair[0]} x {pair[1]}"


def _millions(module: nn.Module, trained: bool = True) -> str:
    return f"{sum(p.numel() for p in module.parameters() if p.requires_grad == trained) / 1e6:.2f} M"
