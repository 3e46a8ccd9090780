"""The teacher's images from the student's batch: the teacher's normalisation, and a size whose patch grid fits."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from singer_hf.distillation.student_features import make_student_extractor
from singer_hf.vit.features import FeatureCapture
from singer_hf.vit.view import ViTView

# (mean, std) of each colour channel, as in image processors.
Normalization = tuple[Sequence[float], Sequence[float]]

# With aspect ratios that differ by more than this factor, patches at the same place show different parts of an image.
_MAX_ASPECT_FACTOR = 1.1


class TeacherInput(nn.Module):
    """Converts images (B, 3, H, W) normalised for the student to images for the teacher.

    The size is the first of these that the teacher accepts: the size at which it has the student's patch grid; the
    student's own size, rounded to whole patches; the size in the teacher's config. If the grids still differ, the
    distiller interpolates the student's feature map.

    Args:
        view: View of the teacher.
        image_size: (height, width) of the student's images in pixels.
        student_grid: (rows, columns) of the student's tokens at that size.
        student_normalization: (mean, std) of the incoming images.
        teacher_normalization: (mean, std) that the teacher expects. None for either: no re-normalisation.

    Attributes:
        image_size: (height, width) of the incoming images.
        teacher_image_size: (height, width) of the converted images.
        grid: (rows, columns) of the teacher's patches.

    Raises:
        ValueError: If the teacher accepts none of the sizes, or only one of another aspect ratio.
    """

    def __init__(
        self,
        view: ViTView,
        image_size: tuple[int, int],
        student_grid: tuple[int, int],
        student_normalization: Normalization | None = None,
        teacher_normalization: Normalization | None = None,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.teacher_image_size = _choose_size(view, image_size, student_grid)
        self.grid = view.grid(*self.teacher_image_size)
        self._patch_embedding = [view.patch_embedding]  # in a list: not to be registered as a part of this module
        _check_aspect(student_grid, self.grid)
        scale, shift = _affine(student_normalization, teacher_normalization)
        self.renormalizes = bool((scale != 1).any() or (shift != 0).any())
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Images (B, 3, H, W) for the student -> images (B, 3, H', W') for the teacher, in the teacher's dtype.

        Raises:
            ValueError: If the images do not have the size ``image_size``.
        """
        if tuple(pixel_values.shape[-2:]) != self.image_size:
            raise ValueError(
                f"`pixel_values` must be images of {self.image_size[0]} x {self.image_size[1]} pixels, as given by "
                f"`image_size`, got {tuple(pixel_values.shape)}"
            )
        if self.teacher_image_size != self.image_size:
            pixel_values = F.interpolate(
                pixel_values, self.teacher_image_size, mode="bilinear", antialias=True, align_corners=False
            )
        if self.renormalizes:
            pixel_values = pixel_values * self.scale + self.shift
        return pixel_values.to(self._patch_embedding[0].weight.dtype)


def _choose_size(view: ViTView, image_size: tuple[int, int], student_grid: tuple[int, int]) -> tuple[int, int]:
    matching = tuple(count * size for count, size in zip(student_grid, view.patch_size, strict=True))
    rounded = tuple(max(side // size, 1) * size for side, size in zip(image_size, view.patch_size, strict=True))
    # To match the coarse feature map of a CNN, the image would shrink to a thumbnail: the teacher gets the full size.
    wanted = [matching, rounded] if min(matching) >= min(rounded) // 2 else [rounded]
    candidates = [size for size in (*wanted, view.image_size) if size is not None]
    errors = []
    for size in dict.fromkeys(candidates):
        try:
            _probe(view, size)
        except (ValueError, RuntimeError, AssertionError) as error:
            errors.append(f"{size[0]} x {size[1]}: {error}")
        else:
            return size
    raise ValueError(
        f"teacher and student grids cannot be matched: {type(view.backbone).__name__} takes images of none of the "
        "sizes " + "; ".join(errors)
    )


def _check_aspect(student_grid: tuple[int, int], teacher_grid: tuple[int, int]) -> None:
    factor = (student_grid[0] / student_grid[1]) / (teacher_grid[0] / teacher_grid[1])
    if abs(math.log(factor)) > math.log(_MAX_ASPECT_FACTOR):
        raise ValueError(
            f"teacher and student grids cannot be matched: the teacher's {teacher_grid[0]} x {teacher_grid[1]} "
            f"patches and the student's {student_grid[0]} x {student_grid[1]} have different aspect ratios; use "
            "images of the teacher's aspect ratio"
        )


@torch.no_grad()
def _probe(view: ViTView, size: tuple[int, int]) -> None:
    """Raises unless the teacher takes one image of this size through its embeddings and first block."""
    weight = view.patch_embedding.weight
    FeatureCapture(view, (0,))(torch.zeros(1, 3, *size, device=weight.device, dtype=weight.dtype))


def _affine(student: Normalization | None, teacher: Normalization | None) -> tuple[Tensor, Tensor]:
    """(scale, shift), each (3, 1, 1), from the student's to the teacher's normalised pixels."""
    if student is None or teacher is None:
        return torch.ones(3, 1, 1), torch.zeros(3, 1, 1)
    (mean_s, std_s), (mean_t, std_t) = (torch.tensor(pair, dtype=torch.float64) for pair in (student, teacher))
    scale, shift = std_s / std_t, (mean_s - mean_t) / std_t
    return scale.float().view(3, 1, 1), shift.float().view(3, 1, 1)


def teacher_image_size(
    student: nn.Module,
    view: ViTView,
    image_size: tuple[int, int] | None = None,
    student_layers: Sequence[int] | None = None,
) -> tuple[int, int]:
    """Returns the (height, width) in pixels of the teacher's images in a distillation.

    Args:
        student: The student.
        view: View of the teacher.
        image_size: (height, width) of the student's images. None: the size in its config, else 224 x 224.
        student_layers: Student blocks of the distillation. None: the default ones.

    Raises:
        ValueError: If the patch grids cannot be matched.
    """
    extractor = make_student_extractor(student, image_size)
    size = image_size or extractor.image_size
    grid = extractor.grid((student_layers or [extractor.num_blocks - 1])[-1], size)
    return TeacherInput(view, size, grid).teacher_image_size
