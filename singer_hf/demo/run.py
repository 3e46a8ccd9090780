"""The demo: drawn scenes, a small teacher with planted artifacts, and two students of it: FitNet and SiNGER."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, PreTrainedModel, set_seed

from singer_hf.artifacts.outliers import outlier_ratio
from singer_hf.baselines.fitnet import FitNet
from singer_hf.baselines.recipes import DEFAULT_RECIPE, RECIPES, recipe_settings
from singer_hf.cards.evaluation_section import add_evaluations
from singer_hf.cards.markdown import markdown_table
from singer_hf.configs import TRAINED, find
from singer_hf.data.batches.image_batches import load_batches
from singer_hf.data.drawn_scenes import scene_dataset
from singer_hf.data.image_processors import load_image_processor
from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.evaluation.heads.logistic_regression import linear_probe
from singer_hf.inspection.report.student_maps import student_maps
from singer_hf.training.arguments import SingerTrainingArguments
from singer_hf.training.figures import longest_norms, save_figure
from singer_hf.training.guards.output_folder import check_output_folder
from singer_hf.training.trainer import SingerDistillationTrainer
from singer_hf.tuner import SingerConfig

BANNER = """
singer-hf demo. Everything here is SYNTHETIC: the images are scenes drawn in this process, and the teacher is a small
ViT trained on such scenes in which high-norm artifact tokens were PLANTED. It shows how the software works; the
numbers say nothing about photographs. For your own data: singer-hf distill --help
"""
PICTURES = 2
CANDIDATES = 250  # test scenes of which the pictures are chosen


@dataclass
class DemoSettings:
    """Settings of the demo, which are also the flags of the command; the defaults take a few minutes on two cores."""

    teacher: str = field(default="demo-teacher", metadata={"help": "Teacher: name or folder."})
    output_dir: str = field(default="outputs/demo", metadata={"help": "Folder for students, adapter and figure."})
    num_train_images: int = field(default=4000, metadata={"help": "Drawn scenes to distil on; the probe uses labels."})
    num_test_images: int = field(default=1000, metadata={"help": "Drawn scenes to measure on."})
    num_epochs: float = field(default=7.0, metadata={"help": "Passes over the training scenes."})
    batch_size: int = field(default=64, metadata={"help": "Scenes per step."})
    recipe: str = field(
        default=DEFAULT_RECIPE, metadata={"help": f"Settings of the SiNGER student: {', '.join(RECIPES)}."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of scenes, weights and order."})

    def __post_init__(self) -> None:
        for name in ("num_train_images", "num_test_images", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)!r}")
        if not self.num_epochs > 0:
            raise ValueError(f"`num_epochs` must be greater than 0, got {self.num_epochs!r}")


def run_demo(settings: DemoSettings) -> dict[str, dict[str, float]]:
    """Trains both students, prints the table, writes ``demo.png`` and the students; returns the table's rows.

    Raises:
        ValueError: If the output folder holds another run or the recipe is unknown.
    """
    methods = _methods(settings)
    print(BANNER)
    for method in ("fitnet", "singer"):
        check_output_folder(Path(settings.output_dir) / method)
    # The teacher was trained on series 0 and measured on series 1.
    train = scene_dataset(settings.num_train_images, seed=settings.seed + 2)
    test = scene_dataset(settings.num_test_images, seed=settings.seed + 3)
    trainers, seconds = {}, {}
    titles = {"fitnet": "FitNet (features as they are)", "singer": f"SiNGER (recipe: {settings.recipe})"}
    for name, (adapter, objective) in methods.items():
        print(f"\ndistilling a student with {titles[name]}")
        start = time.perf_counter()
        trainers[name] = _distil(settings, name, adapter, objective, train)
        seconds[name] = time.perf_counter() - start
    rows = _measure(trainers, seconds, train, test)
    for name, label in (("fitnet", "FitNet student"), ("singer", "SiNGER student")):
        _add_to_card(Path(settings.output_dir, name, "README.md"), rows[label]["probe_top1"], len(test))
    _draw(trainers, test, Path(settings.output_dir))
    print(f"\n{_table(rows)}")
    print(f"\nfigure: {settings.output_dir}/demo.png")
    print(f"student: {trainers['singer'].args.output_dir}, for AutoModel.from_pretrained")
    return rows


def _methods(settings: DemoSettings) -> dict[str, tuple[SingerConfig | None, dict[str, Any]]]:
    """Name of the method -> its adapter and its fields of SingerTrainingArguments."""
    recipe, adapter_fields = recipe_settings(settings.recipe), {item.name for item in fields(SingerConfig)}
    adapter = {name: value for name, value in recipe.items() if name in adapter_fields}
    objective = {name: value for name, value in recipe.items() if name not in adapter_fields}
    # Both students learn by the same L_KD.
    shared = {name: value for name, value in objective.items() if name in FitNet.objective_fields}
    return {"fitnet": (None, shared), "singer": (SingerConfig(**adapter), objective)}


def _distil(
    settings: DemoSettings, name: str, adapter: SingerConfig | None, objective: dict[str, Any], train: Dataset
) -> SingerDistillationTrainer:
    args = SingerTrainingArguments(
        output_dir=str(Path(settings.output_dir) / name),
        num_train_epochs=settings.num_epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=1e-3,
        bf16=False,
        logging_steps=50,
        warmup_steps=50,
        save_strategy="no",
        report_to="none",
        license="apache-2.0",
        seed=settings.seed,
        **objective,
    )
    set_seed(settings.seed)
    trainer = SingerDistillationTrainer(
        _student(settings.teacher),
        settings.teacher,
        args,
        adapter,
        train_dataset=train,
        processing_class=load_image_processor(settings.teacher),
        run_facts={
            "synthetic_data": True,
            "dataset": "drawn scenes",
            "teacher": "the demo teacher (planted artifacts)",
        },
    )
    trainer.train()
    trainer.save_model()
    return trainer


def _student(teacher: str) -> PreTrainedModel:
    """The teacher's architecture at half its width, with random weights."""
    config = AutoConfig.from_pretrained(find(teacher, TRAINED))
    config.name_or_path = ""
    config.hidden_size //= 2
    config.intermediate_size = 4 * config.hidden_size
    return AutoModel.from_config(config, add_pooling_layer=False)


def _extractors(trainers: dict[str, SingerDistillationTrainer]) -> dict[str, Callable[[Tensor], tuple[Tensor, int]]]:
    """Name of the model -> images to (tokens after its last block, before the norm; number of prefix tokens)."""
    singer, fitnet = trainers["singer"].distiller, trainers["fitnet"].distiller
    last, prefix = singer.teacher_layers[-1], singer.teacher_view.num_prefix_tokens

    def student(distiller: FeatureDistiller) -> Callable[[Tensor], tuple[Tensor, int]]:
        extract, block = distiller.student_extractor, distiller.student_layers[-1]
        return lambda images: (extract(images)[block], extract.num_class_tokens)

    def teacher(images: Tensor) -> dict[int, Tensor]:
        return singer.teacher_features(images).outputs

    return {
        "teacher": lambda images: (teacher(images)[last], prefix),
        "refined teacher": lambda images: (singer.refine(teacher(images))[last], prefix),
        "FitNet student": student(fitnet),
        "SiNGER student": student(singer),
    }


@torch.no_grad()
def _features(extract: Callable[[Tensor], tuple[Tensor, int]], images: Tensor) -> tuple[Tensor, Tensor]:
    """(class token and mean patch side by side (M, 2 D), norms of the patches (M, N)) of images (M, 3, H, W)."""
    features, norms = [], []
    for batch in images.split(250):
        tokens, prefix = extract(batch)
        patches = tokens[:, prefix:]
        features.append(torch.cat([tokens[:, 0], patches.mean(dim=1)], dim=1))
        norms.append(patches.norm(dim=-1))
    return torch.cat(features), torch.cat(norms)


def _measure(
    trainers: dict[str, SingerDistillationTrainer], seconds: dict[str, float], train: Dataset, test: Dataset
) -> dict[str, dict[str, float]]:
    """A row per model: outlier ratio on the test scenes, linear probe of the scene's class, seconds of training."""
    processor = trainers["singer"].processing_class
    images, test_images = (torch.cat(load_batches(scenes, processor)) for scenes in (train, test))
    labels, test_labels = torch.tensor(train["label"]), torch.tensor(test["label"])
    rows = {}
    for name, extract in tqdm(_extractors(trainers).items(), desc="linear probes"):
        features, _ = _features(extract, images)
        test_features, norms = _features(extract, test_images)
        accuracy = linear_probe(features, labels, test_features, test_labels)
        rows[name] = {"outlier_ratio": float(outlier_ratio(norms)), "probe_top1": accuracy}
    rows["FitNet student"]["seconds"], rows["SiNGER student"]["seconds"] = seconds["fitnet"], seconds["singer"]
    return rows


def _add_to_card(file: Path, top1: float, num_images: int) -> None:
    """Adds the top-1 of the linear probe on ``num_images`` test scenes to a student's card."""
    card = ModelCard.load(file)
    add_evaluations(card, [("classification", "drawn scenes", "linear_probe_top1", top1, num_images)])
    card.save(file)


@torch.no_grad()
def _draw(trainers: dict[str, SingerDistillationTrainer], test: Dataset, folder: Path) -> None:
    """Writes ``demo.png``: maps of the test scenes in which the teacher has the longest patch tokens."""
    scenes = test.select(range(min(CANDIDATES, len(test))))
    images = torch.cat(load_batches(scenes, trainers["singer"].processing_class))
    extracted = {name: extract(images) for name, extract in _extractors(trainers).items()}
    tokens = {name: found[:, prefix:] for name, (found, prefix) in extracted.items()}
    grid = trainers["singer"].distiller.teacher_input.grid
    chosen = longest_norms(tokens["teacher"].norm(dim=-1).unflatten(1, grid), PICTURES)
    pictures = [pil_to_tensor(scenes[index]["image"].convert("RGB")) for index in chosen]
    pictures = torch.stack(pictures).permute(0, 2, 3, 1) / 255
    save_figure(lambda: student_maps(pictures, tokens, grid, chosen), folder / "demo.png")


def _table(rows: dict[str, dict[str, float]]) -> str:
    cells = []
    for name, row in rows.items():
        seconds = f"{row['seconds']:.0f}" if "seconds" in row else "-"
        cells.append([name, f"{row['outlier_ratio']:.2f}", f"{row['probe_top1']:.3f}", seconds])
    return markdown_table(["", "p99 / median patch norm", "linear probe, top-1", "training, s"], cells)
