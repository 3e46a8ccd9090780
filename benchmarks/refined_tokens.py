"""How close a trained adapter brings planted tokens to those of the unplanted teacher, without any student's help.

    python benchmarks/refined_tokens.py --teacher outputs/teacher/planted --unplanted outputs/teacher/unplanted \
        --dataset_name data/cifar10 --num_steps 150

For every variant a new adapter is trained by L_outlier and L_info alone (L_KD has no gradient to it). Printed are, for
each distilled block, over held-out images: the mean cosine of refined tokens to the unplanted teacher's at planted
places and elsewhere, and recall and precision of the gate. A place is planted where the raw token is more than half a
median norm away from the unplanted teacher's.
"""

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel, ViTConfig, ViTModel

from singer_hf import SingerConfig, SingerDistiller
from singer_hf.artifacts.outliers import OutlierRule
from singer_hf.baselines.cleanups.neighbor_mean import NeighborMean
from singer_hf.baselines.recipes import recipe_settings
from singer_hf.cards.markdown import markdown_table
from singer_hf.data.datasets import load_image_dataset
from singer_hf.demo.classifier_teacher import first_images
from singer_hf.tuner.model import attach_adapter
from singer_hf.vit.structure import view_vit

ADAPTER = ("init_weights", "nullspace_source", "init_scale", "gate")
RECOMMENDED = recipe_settings("recommended")
VARIANTS = {
    "recommended": {},
    "without the gate": {"gate": "none"},
    "a low norm instead of the neighbours": {"outlier_loss": "relative"},
    "a low norm and `info_weight` 100": {"outlier_loss": "relative", "info_weight": 100.0},
    "start at -1": {"init_scale": -1.0},
    "start at +1": {"init_scale": 1.0},
    "start at -1, random directions": {"init_scale": -1.0, "init_weights": "random"},
    "random directions": {"init_weights": "random"},
    "paper": recipe_settings("paper") | {"detach_refined": True},
}


def parse() -> argparse.Namespace:
    """Parses the flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("teacher", "unplanted", "dataset_name"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--num_steps", type=int, default=150)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--num_images", type=int, default=500, help="Held-out images.")
    return parser.parse_args()


def load(name: str) -> torch.nn.Module:
    """Loads a teacher without its head."""
    return AutoModel.from_pretrained(name, add_pooling_layer=False).eval()


def train_adapter(args: argparse.Namespace, settings: dict, images: Tensor) -> SingerDistiller:
    """Trains a new adapter by its own two terms."""
    settings = RECOMMENDED | settings
    teacher = load(args.teacher)
    torch.manual_seed(0)
    student = ViTModel(
        ViTConfig(
            hidden_size=8,
            num_hidden_layers=4,
            num_attention_heads=1,
            intermediate_size=8,
            image_size=teacher.config.image_size,
            patch_size=teacher.config.patch_size,
        ),
        add_pooling_layer=False,
    )
    adapter = SingerConfig(**{name: settings.pop(name) for name in ADAPTER})
    distiller = SingerDistiller(student, attach_adapter(teacher, adapter), **settings).train()
    trained = [p for layer in distiller.singer_layers.values() for p in layer.adapter_parameters()]
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, weight_decay=1e-4)
    for step in range(args.num_steps):
        start = step * args.batch_size % (len(images) - args.batch_size + 1)
        optimizer.zero_grad()
        distiller(images[start : start + args.batch_size]).loss.backward()
        optimizer.step()
    return distiller.eval()


def cosines(tokens: Tensor, expected: Tensor, planted: Tensor) -> str:
    """Mean cosine of patch tokens (M, N, D) to the expected ones at planted places (M, N) and elsewhere."""
    values = F.cosine_similarity(tokens, expected, dim=-1)
    return f"{values[planted].mean():.3f} / {values[~planted].mean():.3f}"


@torch.no_grad()
def rows_of(distiller: SingerDistiller, raw: dict, clean: dict, planted: dict) -> Iterator[list[str]]:
    """Cells of each block: cosines, recall and precision of the gate."""
    prefix = distiller.teacher_view.num_prefix_tokens
    for block, refined in distiller.refine(raw).items():
        shares = distiller.singer_layers[block].gate_shares(raw[block][:, prefix:])
        gate = "-"
        if shares is not None:
            found, places = shares > 0, planted[block]
            hits = (found & places).sum()
            gate = f"{hits / places.sum():.3f} / {hits / found.sum():.3f}"
        yield [str(block), cosines(refined[:, prefix:], clean[block], planted[block]), gate]


@torch.no_grad()
def main() -> None:
    """Prints the table."""
    args = parse()
    processor = AutoImageProcessor.from_pretrained(args.unplanted)
    splits = {name: load_image_dataset(args.dataset_name, split=name) for name in ("train", "test")}
    images = first_images(splits["train"], processor, args.num_steps * args.batch_size)
    test = first_images(splits["test"], processor, args.num_images)
    rows, raw, clean, planted = [], {}, {}, {}
    for name, settings in VARIANTS.items():
        with torch.enable_grad():
            distiller = train_adapter(args, settings, images)
        if not raw:
            prefix, grid = distiller.teacher_view.num_prefix_tokens, distiller.teacher_input.grid
            raw = distiller.teacher_features(test).outputs
            clean = _patches(SingerDistiller(distiller.student, load(args.unplanted)), test)
            for block in clean:
                unit = clean[block].norm(dim=-1).median()
                planted[block] = (raw[block][:, prefix:] - clean[block]).norm(dim=-1) > 0.5 * unit
                rows.append(["raw", str(block), cosines(raw[block][:, prefix:], clean[block], planted[block]), "-"])
                neighbors = NeighborMean(prefix, grid, rule=OutlierRule(), scope="batch").refine(raw[block])
                mean = cosines(neighbors[:, prefix:], clean[block], planted[block])
                rows.append(["`neighbor`, threshold over the images", str(block), mean, "-"])
        rows += [[name, *cells] for cells in rows_of(distiller, raw, clean, planted)]
    print(markdown_table(["adapter", "block", "cosine, planted / elsewhere", "gate, recall / precision"], rows))


def _patches(distiller: SingerDistiller, images: Tensor) -> dict[int, Tensor]:
    prefix = view_vit(distiller.teacher).num_prefix_tokens
    return {i: distiller.teacher_features(images).outputs[i][:, prefix:] for i in distiller.teacher_layers}


if __name__ == "__main__":
    main()
