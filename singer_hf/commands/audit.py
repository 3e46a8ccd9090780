"""Audits vision transformers: which patch tokens are high-norm artifacts, where, how strong, and what to do.

    python examples/audit.py --model_name_or_path examples/demo_teacher --output_dir audit/
    python examples/audit.py --model_name_or_path facebook/dinov2-base --dataset_name photos/ --output_dir audit/
    python examples/audit.py --model_name_or_path teacher/ --adapter_name_or_path run/singer --output_dir audit/
    python examples/audit.py --model_name_or_path teacher/ fitnet/ run/ --dataset_name photos/ --output_dir audit/

Writes audit.json, figures/*.png and report.html, a page of its own that loads nothing. Of several models the first is
the teacher the others are compared with. Without `--dataset_name` the images are drawn scenes. A YAML file of the same
names can stand in place of the flags.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from transformers import AutoConfig, AutoModelForImageClassification, HfArgumentParser

import singer_hf  # noqa: F401  (registers the adapter with PEFT)
from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.data.columns import select_image_and_label
from singer_hf.data.datasets import load_image_dataset
from singer_hf.data.drawn_scenes import scene_dataset
from singer_hf.data.image_dataset import transform_images
from singer_hf.data.image_processors import ImageSpec, image_spec, load_image_processor
from singer_hf.data.transforms import eval_transform, to_rgb
from singer_hf.distillation.teacher_input import TeacherInput
from singer_hf.inspection.measure.audit import audit
from singer_hf.inspection.measure.audit_result import AuditResult
from singer_hf.inspection.measure.feature_comparison import compare_features, load_projectors
from singer_hf.inspection.measure.nullspace_report import report_nullspace
from singer_hf.inspection.measure.snapshots import Snapshot, take_snapshot
from singer_hf.inspection.report.page import audit_pictures, figure_png, render_report
from singer_hf.inspection.report.verdict import judge
from singer_hf.vit.loading import load_model
from singer_hf.vit.structure import view_vit


@dataclass
class Settings:
    model_name_or_path: list[str] = field(metadata={"help": "One or several models: folders or Hub ids."})
    output_dir: str = field(metadata={"help": "Folder for audit.json, figures/ and report.html."})
    adapter_name_or_path: str | None = field(default=None, metadata={"help": "A SiNGER adapter of the one model."})
    dataset_name: str | None = field(default=None, metadata={"help": "Folder, parquet file or Hub id; labels unused."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the dataset."})
    image_column: str | None = field(default=None, metadata={"help": "Column of the images, found if left out."})
    max_samples: int = field(default=500, metadata={"help": "Images, drawn by `seed`."})
    seed: int = field(default=0, metadata={"help": "Seed of the sample."})
    processor_name_or_path: str | None = field(default=None, metadata={"help": "Image processor for all models."})
    image_size: list[int] | None = field(default=None, metadata={"help": "Height and width of the images."})
    batch_size: int = field(default=16, metadata={"help": "Images per batch; halved by itself if memory is short."})
    num_workers: int = field(default=0, metadata={"help": "Processes that read images."})
    num_pictures: int = field(default=3, metadata={"help": "Images shown in figures."})
    mad_factor: float = field(default=10.0, metadata={"help": "k of the outlier rule, median + k MAD."})
    absolute_threshold: float | None = field(default=None, metadata={"help": "A norm above which to count as well."})
    device: str | None = field(default=None, metadata={"help": "Torch device; a GPU if there is one."})


class Images:
    """Batches of readable images for one model; the unreadable ones are named in ``broken``."""

    def __init__(self, settings: Settings, spec: ImageSpec, transform: object) -> None:
        self.spec, self.broken = spec, {}
        rows = transform_images(load_images(settings), transform)
        self.loader = DataLoader(
            rows, settings.batch_size, num_workers=settings.num_workers, collate_fn=collate_readable
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.loader:
            self.broken |= dict.fromkeys(batch["errors"])
            if batch["pixel_values"] is not None:
                yield batch["pixel_values"]


def collate_readable(rows: list[dict]) -> dict:
    pixels = [row["pixel_values"] for row in rows if "pixel_values" in row]
    errors = [row["error"] for row in rows if "error" in row]
    return {"pixel_values": torch.stack(pixels) if pixels else None, "errors": errors}


def load_images(settings: Settings) -> object:
    if settings.dataset_name is None:
        return select_image_and_label(scene_dataset(settings.max_samples, settings.seed))
    return load_image_dataset(
        settings.dataset_name,
        split=settings.dataset_split,
        image_column=settings.image_column,
        max_samples=settings.max_samples,
        seed=settings.seed,
    )


def load(name: str, settings: Settings) -> nn.Module:
    """The model with its classifier if it has one, and with the adapter if one is given."""
    model = load_model(name, "model_name_or_path")
    if any("ForImageClassification" in kind for kind in AutoConfig.from_pretrained(name).architectures or ()):
        model = AutoModelForImageClassification.from_pretrained(name)
    if settings.adapter_name_or_path is not None:
        model = PeftModel.from_pretrained(model, settings.adapter_name_or_path)
    return model.to(settings.device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def images_for(name: str, settings: Settings) -> Images:
    processor = load_image_processor(settings.processor_name_or_path or name)
    if processor is None:
        raise ValueError(f"`model_name_or_path` {name!r} has no image processor; give `--processor_name_or_path`")
    spec = image_spec(processor)
    if settings.image_size is None:
        return Images(settings, spec, eval_transform(processor))
    if len(settings.image_size) != 2:
        raise ValueError(f"`image_size` must be a height and a width, got {settings.image_size}")
    steps = [to_rgb, v2.Resize(settings.image_size, spec.interpolation, antialias=True), v2.ToImage()]
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(spec.mean, spec.std), v2.ToPureTensor()]
    return Images(settings, spec, v2.Compose(steps))


def examine(name: str, label: str, settings: Settings) -> tuple[nn.Module, Images, AuditResult, Snapshot]:
    model, images = load(name, settings), images_for(name, settings)
    rule = OutlierRule(mad_factor=settings.mad_factor, absolute=settings.absolute_threshold)
    first = next(iter(images), None)
    if first is None:
        raise ValueError(f"none of the {len(images.broken)} images can be read: {named(images.broken)}")
    result = audit(model, images, rule=rule, name=label)
    if settings.adapter_name_or_path is not None:
        result.adapter = report_nullspace(model, [first])
    if images.broken:
        result.notes.append(f"{len(images.broken)} unreadable images left out: {named(images.broken)}")
    shown = first[: settings.num_pictures]
    return model, images, result, take_snapshot(model, shown, name=label, mean=images.spec.mean, std=images.spec.std)


def named(broken: Iterable[str], limit: int = 5) -> str:
    """The first few of the unreadable images, with the reason."""
    return "; ".join(list(broken)[:limit])


def compare(student: nn.Module, teacher: nn.Module, students: Images, teachers: Images, folder: str) -> list[dict]:
    size = tuple(next(iter(students)).shape[-2:])
    to_teacher = TeacherInput(
        view_vit(teacher),
        size,
        view_vit(student).grid(*size),
        (students.spec.mean, students.spec.std),
        (teachers.spec.mean, teachers.spec.std),
    ).to(next(teacher.parameters()).device)
    file = Path(folder, "projectors", "model.safetensors")
    projectors = load_projectors(file) if file.is_file() else None
    device = next(teacher.parameters()).device
    return compare_features(
        student, teacher, students, projectors=projectors, teacher_input=lambda pixels: to_teacher(pixels.to(device))
    )


def prepare_folder(path: str) -> Path:
    folder = Path(path)
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"`output_dir` must be a folder that can be written, got {path!r}: {error}") from error
    if not os.access(folder / "figures", os.W_OK):
        raise ValueError(f"`output_dir` must be a folder that can be written, got {path!r}")
    return folder


def run(settings: Settings) -> None:
    names, folder = settings.model_name_or_path, prepare_folder(settings.output_dir)
    if settings.adapter_name_or_path is not None and len(names) > 1:
        raise ValueError(f"`adapter_name_or_path` goes with one model, got {len(names)} models")
    labels = [Path(name).name if len({Path(n).name for n in names}) == len(names) else name for name in names]
    models, images, results, snapshots = zip(
        *(examine(name, label, settings) for name, label in zip(names, labels, strict=True)), strict=True
    )
    comparisons = {
        f"{labels[i]} beside {labels[0]}": compare(models[i], models[0], images[i], images[0], names[i])
        for i in range(1, len(names))
    }
    pictures = audit_pictures(results, snapshots)
    for picture in pictures:
        (folder / "figures" / f"{picture.key}.png").write_bytes(figure_png(picture.figure))
    data = {"models": [result.to_dict() for result in results], "comparisons": comparisons}
    (folder / "audit.json").write_text(json.dumps(data, indent=1) + "\n")
    source = settings.dataset_name or "drawn scenes"
    sample = f"{results[0].num_images} images of {Path(source).name}, seed {settings.seed}"
    page = render_report(results, pictures, subtitle=f"{sample}, {date.today().isoformat()}", comparisons=comparisons)
    (folder / "report.html").write_text(page, encoding="utf-8")
    print(*(judge(result).headline for result in results), f"See {folder / 'report.html'}", sep="\n")


def main() -> None:
    parser = HfArgumentParser(Settings)
    if len(sys.argv) == 2 and sys.argv[1].endswith((".yaml", ".yml")):
        (settings,) = parser.parse_yaml_file(sys.argv[1])
    else:
        (settings,) = parser.parse_args_into_dataclasses()
    try:
        run(settings)
    except (ValueError, FileNotFoundError, MemoryError) as error:
        sys.exit(f"error: {error}")
