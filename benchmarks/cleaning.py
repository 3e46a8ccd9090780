"""What cleaning a teacher is worth without a student: heads on its features before and after, by several methods.

    python benchmarks/cleaning.py --planted outputs/teacher/planted --unplanted outputs/teacher/unplanted \
        --dataset_name data/cifar10 --camvid data/camvid --output_dir outputs/cleaning/cifar10 --seeds 0 1 2
    python benchmarks/cleaning.py --planted demo_teacher --unplanted outputs/demo_unplanted \
        --dataset_name "drawn scenes" --output_dir outputs/cleaning/scenes --seeds 0 1 2 \
        --num_probe_images 2000 --num_test_images 1000

All methods act inline, behind the block in which the audit sees the outliers begin: ``singer``: an adapter trained by
:func:`singer_hf.cleaning.clean.clean`; ``neighbor``: outliers of each image become the mean of their neighbours;
``register``: a test-time register; ``direction``: projection off the singular direction. The heads are trained afresh
for every cell. Each cell is one JSON file; finished ones are kept, so that an interrupted run goes on.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.metrics import jaccard_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from singer_hf import SingerConfig
from singer_hf.artifacts.outliers import OutlierRule, outlier_ratio, token_norms
from singer_hf.baselines.cleanups.neighbor_mean import NeighborMean
from singer_hf.baselines.cleanups.register_method import TestTimeRegister
from singer_hf.baselines.cleanups.singular_direction import SingularDirectionMethod
from singer_hf.cards.markdown import markdown_table
from singer_hf.cleaning.clean import clean
from singer_hf.cleaning.plan import plan_cleaning
from singer_hf.comparison.measure.cell_metrics import benchmark_metrics, probe_metrics
from singer_hf.data.batches.image_batches import load_batches
from singer_hf.data.columns import select_image_and_label
from singer_hf.data.datasets import load_image_dataset
from singer_hf.data.drawn_scenes import scene_dataset
from singer_hf.data.image_processors import load_image_processor
from singer_hf.inspection.measure.audit import audit
from singer_hf.tuner.layer import find_singer_layers, flowing_tokens
from singer_hf.vit.features import capture_features, first_tensor
from singer_hf.vit.inference import evaluation_mode
from singer_hf.vit.loading import load_model
from singer_hf.vit.structure import view_vit

DRAWN = "drawn scenes"
METHODS = ("planted", "unplanted", "singer", "neighbor", "register", "direction")
CAMVID_SETTINGS = {"num_epochs": 10, "image_size": 96, "learning_rates": [0.3, 1.0], "batch_size": 16}
CAMVID = {"name": "camvid", "max_train_samples": 367, "max_test_samples": 100}
RIDGE = 1.0
COLUMNS = ("probe_cls", "probe_mean", "knn", "mean_iou", "depth_rmse", "worst_ratio", "time_ratio", "seconds")


def parse() -> argparse.Namespace:
    """Parses the flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("planted", "unplanted", "dataset_name", "output_dir"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--camvid", help="Folder of CamVid, for teachers that are not of the drawn scenes.")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--num_probe_images", type=int, default=5000)
    parser.add_argument("--num_test_images", type=int, default=4000)
    parser.add_argument("--layers_to_transform", nargs="+", type=int, help="Blocks of the adapters, for trials.")
    return parser.parse_args()


def load(name: str) -> nn.Module:
    """Loads a teacher without its head."""
    return load_model(name, "planted").eval()


def images(args: argparse.Namespace, split: str, number: int) -> Dataset:
    """Labelled images of a split."""
    if args.dataset_name == DRAWN:
        return select_image_and_label(scene_dataset(number, seed={"train": 2, "test": 3}[split]))
    return load_image_dataset(args.dataset_name, split=split, max_samples=number, seed=0)


def inline(model: nn.Module, block: int, refine: Callable[[Tensor, tuple[int, int]], Tensor]) -> nn.Module:
    """Adds a clean-up of the tokens after a block, (tokens, grid) -> tokens; images are square."""
    view = view_vit(model)

    def hook(module: nn.Module, args: tuple, output: object) -> object:
        tokens = first_tensor(output)
        side = round((tokens.shape[1] - view.num_prefix_tokens) ** 0.5)
        tokens = refine(tokens, (side, side))
        return (tokens, *output[1:]) if isinstance(output, tuple) else tokens

    view.blocks[block].register_forward_hook(hook, prepend=True)
    return model


def neighbor_mean(prefix: int, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Replaces the outliers of each image by the mean of their neighbours."""
    return NeighborMean(prefix, grid, rule=OutlierRule()).refine(tokens)


def prepare(args: argparse.Namespace, method: str, seed: int, calibration: list[Tensor]) -> nn.Module:
    """Returns the teacher, cleaned by the method."""
    model = load(args.unplanted if method == "unplanted" else args.planted)
    if method == "singer":
        settings = {"seed": seed, "disable_tqdm": True}
        config = None
        if args.layers_to_transform:
            config = SingerConfig(layers_to_transform=args.layers_to_transform)
        return clean(model, images(args, "train", 10_000), config, **settings, processor=processor_of(args))
    if method in ("planted", "unplanted"):
        return model
    if method == "register":
        return TestTimeRegister().prepare(model, calibration[:1])
    block = plan_cleaning(audit(model, calibration, progress=False)).blocks[0]
    prefix = view_vit(model).num_prefix_tokens
    if method == "neighbor":
        return inline(model, block, partial(neighbor_mean, prefix))
    refiner = SingularDirectionMethod().make_refiners(model, [block], (1, 1))[block]
    return inline(model, block, lambda tokens, grid: refiner.refine(tokens))


def processor_of(args: argparse.Namespace) -> object:
    """The teachers' image processor."""
    return load_image_processor(args.planted)


@torch.no_grad()
def worst_ratio(model: nn.Module, batch: Tensor, first: int) -> float:
    """Largest p99 over median of an image's patch norms over the blocks from ``first`` on, as the model runs."""
    view = view_vit(model)
    with evaluation_mode(model):
        outputs = capture_features(model, batch, range(view.num_blocks))
        outputs = flowing_tokens(find_singer_layers(model), outputs)
    norms = {i: token_norms(tokens[:, view.num_prefix_tokens :]) for i, tokens in outputs.items() if i >= first}
    return max(float(outlier_ratio(values)) for values in norms.values())


@torch.no_grad()
def time_ratio(model: nn.Module, bare: nn.Module, batch: Tensor, rounds: int = 9) -> float:
    """Time of a forward pass over that of the bare teacher, median of alternating pairs."""
    ratios = []
    for _ in range(rounds):
        times = []
        for candidate in (model, bare):
            start = time.process_time()
            candidate(batch)
            times.append(time.process_time() - start)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios)


def run_cell(args: argparse.Namespace, method: str, seed: int) -> dict[str, float]:
    """Measures one method with one seed, or reads its file."""
    file = Path(args.output_dir, f"{method}_{seed}.json")
    if file.is_file():
        return json.loads(file.read_text())
    processor, test = processor_of(args), images(args, "test", args.num_test_images)
    calibration = load_batches(images(args, "train", 250), processor, batch_size=250)
    start = time.perf_counter()
    model = prepare(args, method, seed, calibration).eval()
    metrics = {"seconds": time.perf_counter() - start}
    first = plan_cleaning(audit(load(args.planted), calibration, progress=False)).blocks[0]
    batch = load_batches(test, processor, 250, batch_size=250)[0]
    metrics |= {
        "worst_ratio": worst_ratio(model, batch, first),
        "time_ratio": time_ratio(model, load(args.planted), batch),
    }
    metrics |= probe_metrics(model, processor, images(args, "train", args.num_probe_images), test)
    metrics |= dense_metrics(args, model, processor, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(metrics, indent=1) + "\n")
    return metrics


def dense_metrics(args: argparse.Namespace, model: nn.Module, processor: object, seed: int) -> dict[str, float]:
    """mIoU on CamVid with the heads of the evaluation; on the scenes mIoU and depth with heads of least squares."""
    if args.dataset_name != DRAWN:
        entry = {**CAMVID, "dataset_name": args.camvid, "settings": {**CAMVID_SETTINGS, "seed": seed}}
        with tempfile.TemporaryDirectory() as cache:
            return benchmark_metrics(model, processor, (entry,), Path(cache))
    train, test = (scene_features(model, processor, number, series) for number, series in ((1000, 4), (500, 5)))
    return {"depth_rmse": depth_rmse(train, test), "mean_iou": mean_iou(train, test)}


@torch.no_grad()
def scene_features(model: nn.Module, processor: object, number: int, series: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens after the final norm with the class token (M, 2 D), depth (M,) and class (M,) of patches of scenes."""
    rows = scene_dataset(number, seed=series)
    batches = load_batches(select_image_and_label(rows), processor, batch_size=250)
    tokens = torch.cat([model(batch).last_hidden_state for batch in batches])
    patches, first = tokens[:, 1:], tokens[:, :1]
    side = round(patches.shape[1] ** 0.5)
    depths = torch.tensor(np.stack([np.asarray(depth, dtype=np.float32) for depth in rows["depth"]]))
    masks = torch.tensor(np.stack([np.asarray(mask, dtype=np.int64) for mask in rows["annotation"]]))
    shares = F.adaptive_avg_pool2d(F.one_hot(masks).permute(0, 3, 1, 2).float(), side)
    features = torch.cat([patches, first.expand_as(patches)], dim=-1).flatten(0, 1)
    return features, F.adaptive_avg_pool2d(depths[:, None], side).flatten(), shares.argmax(dim=1).flatten()


def depth_rmse(train: tuple, test: tuple) -> float:
    """RMSE in metres of a ridge regression of a patch's mean depth."""
    head = make_pipeline(StandardScaler(), Ridge(RIDGE)).fit(train[0], train[1])
    return float(np.sqrt(np.mean((head.predict(test[0]) - test[1].numpy()) ** 2)))


def mean_iou(train: tuple, test: tuple) -> float:
    """mIoU over the classes of the test patches, each patch being of its most frequent class."""
    head = make_pipeline(StandardScaler(), RidgeClassifier(RIDGE)).fit(train[0], train[2])
    return float(jaccard_score(test[2], head.predict(test[0]), average="macro", labels=test[2].unique()))


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Means over the seeds, with the largest and the smallest of several."""
    rows = []
    for method, cells in results.items():
        values = [[cell[name] for cell in cells] if name in cells[0] else None for name in COLUMNS]
        rows.append([method, *("" if value is None else summary(value) for value in values)])
    return markdown_table(["method", *COLUMNS], rows)


def summary(values: list[float]) -> str:
    """``mean (smallest to largest)``."""
    spread = f" ({min(values):.3f} to {max(values):.3f})" if max(values) - min(values) > 5e-4 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def main() -> None:
    """Runs all cells, seed by seed, and prints the table after each."""
    args, results = parse(), {}
    for seed in args.seeds:
        for method in args.methods:
            cell = run_cell(args, method, seed)
            results.setdefault(method, []).append(cell)
            print(method, seed, {name: round(cell[name], 3) for name in COLUMNS if name in cell}, flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
