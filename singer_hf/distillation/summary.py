"""A summary in words of what a distillation is going to do, for the start of a run."""

from collections.abc import Sequence

from torch import nn

from singer_hf.distillation.feature_distiller import FeatureDistiller


def distillation_summary(distiller: FeatureDistiller, method: str, details: Sequence[str] = ()) -> str:
    """Returns the method, both models, the paired blocks with their shapes, and the trained and frozen parameters.

    Args:
        distiller: The distiller.
        method: The method in words.
        details: Further lines of the method, such as the ranks of its adapters.
    """
    view, images = distiller.teacher_view, distiller.teacher_input
    lines = [
        f"method: {method}",
        f"teacher: {type(view.backbone).__name__}, {view.num_blocks} blocks, width {view.hidden_size}, "
        f"{view.num_prefix_tokens} prefix tokens, images {_size(images.teacher_image_size)}, "
        f"patches {_size(images.grid)}",
        f"student: {type(distiller.student).__name__}, {distiller.student_extractor.num_blocks} blocks, "
        f"images {_size(images.image_size)}",
        f"compared: the patches and {distiller.num_common_class_tokens} class token(s)",
        *_pair_lines(distiller),
        *(f"  {detail}" for detail in details),
        f"trained: student {_millions(distiller.student)}, {_trained_modules(distiller)}, "
        f"adapters {_millions(distiller.teacher)}; frozen: teacher {_millions(distiller.teacher, trained=False)}",
    ]
    return "\n".join(lines)


def _pair_lines(distiller: FeatureDistiller) -> list[str]:
    lines, target = [], distiller.teacher_input.grid
    for pair in distiller.pairs:
        resized = "" if pair.grid == target else f", {_size(pair.grid)} map interpolated to {_size(target)}"
        projector = distiller.projectors[str(pair.teacher)]
        widths = f"{projector.in_features} -> {projector.out_features}"
        lines.append(f"  student block {pair.student} -> teacher block {pair.teacher}: projector {widths}{resized}")
    return lines


def _trained_modules(distiller: FeatureDistiller) -> str:
    return ", ".join(f"{name} {_millions(module)}" for name, module in distiller.trained_modules.items())


def _size(pair: tuple[int, int]) -> str:
    return f"{pair[0]} x {pair[1]}"


def _millions(module: nn.Module, trained: bool = True) -> str:
    return f"{sum(p.numel() for p in module.parameters() if p.requires_grad == trained) / 1e6:.2f} M"
