"""Named benchmarks: which data, columns, splits, classes, figure and protocol, with licence and size.

The Hub names are those that public code uses; they were not reachable where this was written, so every one can be
overridden (``replace(get_benchmark("food101"), train_name="folder")`` or ``--dataset_name``). The splits and sizes are
those of the data sets' own papers unless ``note`` says otherwise.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from singer_hf.data.drawn_scenes import SEGMENT_NAMES
from singer_hf.evaluation.benchmarks.imagenet_classes import IMAGENET_R

TaskName = Literal["classification", "segmentation", "depth", "knn"]
DRAWN = "drawn scenes"
METRICS = {"classification": "top1", "segmentation": "mean_iou", "depth": "rmse", "knn": "knn_top1"}


@dataclass(frozen=True)
class Benchmark:
    """A data set and how it is used.

    Attributes:
        name: Name of the benchmark.
        task: "classification", "segmentation", "depth" or "knn".
        train_name: Hub id, local folder, "drawn scenes", or "" where no public copy is known.
        test_name: Likewise for the test split; "" means ``train_name``.
        config_name: Configuration of the data set, if it has several.
        train_split: Split the heads are trained on; "" for a benchmark that reuses another one's head.
        test_split: Split that is measured.
        image_column: Column with the images; None finds it.
        target_column: Column with class, mask or depth; None finds it.
        num_classes: Number of classes; None reads it off the data (classification only).
        class_names: Names of the classes of a mask, for pictures; empty where they are not needed.
        license: Licence or terms of the data, in short.
        size: Images of training and test, in words.
        protocol: Protocol used unless another one is asked for.
        head_from: Benchmark whose trained head is reused.
        known_classes: Classes a reused head may answer under a protocol that says so; empty means all.
        imagenet_classes: Whether labels are turned into the 1000 ImageNet classes.
        ignore_values: Values of a mask that do not count.
        label_offset: Added to the other values of a mask.
        depth_scale: Metres per unit of an integer depth map.
        long_tail: Whether accuracy is also split by the classes' frequency.
        note: What a user must know.
    """

    name: str
    task: TaskName
    train_name: str
    test_name: str = ""
    config_name: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    image_column: str | None = "image"
    target_column: str | None = "label"
    num_classes: int | None = None
    class_names: tuple[str, ...] = ()
    license: str = "unknown"
    size: str = ""
    protocol: str = "singer"
    head_from: str = ""
    known_classes: tuple[int, ...] = ()
    imagenet_classes: bool = False
    ignore_values: tuple[int, ...] = (255,)
    label_offset: int = 0
    depth_scale: float = 1.0
    long_tail: bool = False
    note: str = ""

    @property
    def metric(self) -> str:
        """The figure that stands for the benchmark."""
        return METRICS[self.task]


_IMAGENET = {
    "task": "classification",
    "num_classes": 1000,
    "imagenet_classes": True,
    "license": "ImageNet terms, non-commercial research",
}
_CAMVID_NAMES = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
)
_SCENES = {"train_name": DRAWN, "license": "Apache-2.0 (drawn here)", "size": "any number; 2,000 / 1,000 by default"}

_ALL = (
    Benchmark(
        "imagenet-1k",
        train_name="ILSVRC/imagenet-1k",
        test_split="validation",
        size="1,281,167 / 50,000",
        note="gated: accept the terms, then `hf auth login`",
        **_IMAGENET,
    ),
    Benchmark(
        "imagenet-r",
        train_name="axiong/imagenet-r",
        train_split="",
        target_column="wnid",
        head_from="imagenet-1k",
        known_classes=tuple(sorted(IMAGENET_R.values())),
        size="- / 30,000",
        note="200 classes, with the ImageNet head",
        **_IMAGENET,
    ),
    Benchmark(
        "imagenet-v2",
        train_name="clip-benchmark/wds_imagenetv2",
        train_split="",
        image_column="webp",
        target_column="cls",
        head_from="imagenet-1k",
        size="- / 10,000",
        note="matched frequency, with the ImageNet head",
        **_IMAGENET,
    ),
    Benchmark(
        "inat2019",
        "classification",
        train_name="",
        test_split="validation",
        num_classes=1010,
        long_tail=True,
        license="non-commercial research",
        size="265,213 / 3,030",
        note="no Hub copy known: give an imagefolder with train/ and val/",
    ),
    Benchmark(
        "fgvc-aircraft",
        "classification",
        train_name="Multimodal-Fatima/FGVC_Aircraft_train",
        test_name="Multimodal-Fatima/FGVC_Aircraft_test",
        num_classes=100,
        license="non-commercial research",
        size="3,334 / 3,333",
        note="the copy has no validation images",
    ),
    Benchmark(
        "oxford-pets",
        "classification",
        train_name="timm/oxford-iiit-pet",
        num_classes=37,
        license="CC BY-SA 4.0",
        size="3,680 / 3,669",
    ),
    Benchmark(
        "food101",
        "classification",
        train_name="ethz/food101",
        test_split="validation",
        num_classes=101,
        license="unknown (Foodspotting images)",
        size="75,750 / 25,250",
    ),
    Benchmark(
        "flowers102",
        "classification",
        train_name="dpdl-benchmark/oxford_flowers102",
        num_classes=102,
        license="unknown",
        size="1,020 / 6,149",
    ),
    Benchmark(
        "ade20k",
        "segmentation",
        train_name="danjacobellis/scene_parse_150",
        test_split="validation",
        target_column="annotation",
        num_classes=150,
        ignore_values=(0, 255),
        label_offset=-1,
        license="BSD-3-Clause (annotations)",
        size="20,210 / 2,000",
        note="0 in a mask means other and is ignored",
    ),
    Benchmark(
        "nyud-v2",
        "depth",
        train_name="jagennath-hari/nyuv2",
        train_split="train+val",
        image_column="rgb",
        target_column="depth",
        depth_scale=0.001,
        license="none stated by the copy",
        size="1,304 / 145",
        note="the copy cuts its own splits: give a folder with the standard 795 / 654 for the paper's figure",
    ),
    Benchmark(
        "cifar10",
        "classification",
        train_name="uoft-cs/cifar10",
        image_column="img",
        num_classes=10,
        license="unknown",
        size="50,000 / 10,000",
    ),
    Benchmark(
        "camvid",
        "segmentation",
        train_name="",
        target_column="annotation",
        num_classes=11,
        class_names=_CAMVID_NAMES,
        ignore_values=(11, 255),
        license="CC BY-NC-SA",
        size="367 / 233",
        note="no Hub copy known: give a folder; 11 in a mask means void and is ignored",
    ),
    Benchmark("scenes-classification", "classification", num_classes=len(SEGMENT_NAMES) - 1, **_SCENES),
    Benchmark(
        "scenes-segmentation",
        "segmentation",
        target_column="annotation",
        num_classes=len(SEGMENT_NAMES),
        class_names=SEGMENT_NAMES,
        **_SCENES,
    ),
    Benchmark("scenes-depth", "depth", target_column="depth", **_SCENES),
)
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}

# Means the paper's Table 1 gives: distribution shift and fine-grained classification.
MEANS: dict[str, tuple[str, ...]] = {
    "DS": ("imagenet-r", "imagenet-v2"),
    "FG": ("fgvc-aircraft", "oxford-pets", "food101", "flowers102"),
}
_PAPER = ("imagenet-1k", "ade20k", "nyud-v2", "inat2019", *MEANS["DS"], *MEANS["FG"])
GROUPS: dict[str, tuple[str, ...]] = {
    **MEANS,
    "paper": _PAPER,
    "scenes": ("scenes-classification", "scenes-segmentation", "scenes-depth"),
}


def get_benchmark(name: str) -> Benchmark:
    """The benchmark called ``name``.

    Raises:
        ValueError: If there is none.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"`benchmark` must be one of {sorted([*BENCHMARKS, *GROUPS])}, got {name!r}")
    return BENCHMARKS[name]


def expand_groups(names: Iterable[str]) -> list[str]:
    """Names with the groups ("DS", "FG", "paper", "scenes") replaced by their members, each once and in order."""
    members = [member for name in names for member in GROUPS.get(name, (name,))]
    return list(dict.fromkeys(get_benchmark(member).name for member in members))


def mean_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The means of :data:`MEANS` whose members are all there.

    Args:
        metrics: Name of the benchmark -> its figure.
    """
    return {
        mean: sum(metrics[name] for name in members) / len(members)
        for mean, members in MEANS.items()
        if all(name in metrics for name in members)
    }


def benchmark_table(benchmarks: Sequence[Benchmark] = _ALL) -> str:
    """A markdown table of the benchmarks with data, splits, size and licence."""
    lines = ["| name | task | figure | data | splits | images | licence | |", "|---" * 8 + "|"]
    for item in benchmarks:
        data = " + ".join(dict.fromkeys(filter(None, (item.train_name, item.test_name)))) or "local folder"
        splits = " / ".join((item.train_split or f"head of {item.head_from}", item.test_split))
        row = (item.name, item.task, item.metric, data, splits, item.size, item.license, item.note)
        lines.append(f"| {' | '.join(row)} |")
    groups = "; ".join(f"{name} = {', '.join(members)}" for name, members in GROUPS.items())
    return "\n".join([*lines, "", f"Groups: {groups}"])
