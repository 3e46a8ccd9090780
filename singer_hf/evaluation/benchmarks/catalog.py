"""The benchmarks by name, with licence and size, and their groups.

The Hub names are taken from public code and have not been tried against the Hub; each can be overridden
(``replace(get_benchmark("food101"), train_name="folder")`` or ``--dataset_name``). Splits and sizes are those of the
papers of the data sets unless ``note`` says otherwise.
"""

from collections.abc import Iterable, Mapping, Sequence

from singer_hf.cards.markdown import markdown_table
from singer_hf.data.drawn_scenes import SEGMENT_NAMES
from singer_hf.evaluation.benchmarks.benchmark import DRAWN, Benchmark
from singer_hf.evaluation.benchmarks.imagenet_classes import IMAGENET_R

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
        note="the copy cuts its own splits: give a folder with the standard 795 / 654 for the paper's number",
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
ALL = "all"  # every benchmark whose data is on this machine

# Means in Table 1 of the paper: distribution shift and fine-grained classification.
MEANS: dict[str, tuple[str, ...]] = {
    "DS": ("imagenet-r", "imagenet-v2"),
    "FG": ("fgvc-aircraft", "oxford-pets", "food101", "flowers102"),
}
_PAPER = ("imagenet-1k", "ade20k", "nyud-v2", "inat2019", *MEANS["DS"], *MEANS["FG"])
GROUPS: dict[str, tuple[str, ...]] = {
    **MEANS,
    "paper": _PAPER,
    "scenes": ("scenes-classification", "scenes-segmentation", "scenes-depth"),
    ALL: tuple(BENCHMARKS),
}


def get_benchmark(name: str) -> Benchmark:
    """Returns the benchmark called ``name``.

    Raises:
        ValueError: If there is none.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"`benchmark` must be one of {sorted([*BENCHMARKS, *GROUPS])}, got {name!r}")
    return BENCHMARKS[name]


def expand_groups(names: Iterable[str]) -> list[str]:
    """Replaces groups ("DS", "FG", "paper", "scenes", "all") by their members, each once and in order."""
    members = [member for name in names for member in GROUPS.get(name, (name,))]
    return list(dict.fromkeys(get_benchmark(member).name for member in members))


def mean_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Computes the means of :data:`MEANS` whose members are all given.

    Args:
        metrics: Name of the benchmark -> its main metric.
    """
    return {
        mean: sum(metrics[name] for name in members) / len(members)
        for mean, members in MEANS.items()
        if all(name in metrics for name in members)
    }


def benchmark_table(benchmarks: Sequence[Benchmark] = _ALL) -> str:
    """Returns a markdown table of the benchmarks with data, splits, size and licence."""
    rows = []
    for item in benchmarks:
        data = " + ".join(dict.fromkeys(filter(None, (item.train_name, item.test_name)))) or "local folder"
        splits = " / ".join((item.train_split or f"head of {item.head_from}", item.test_split))
        rows.append((item.name, item.task, item.metric, data, splits, item.size, item.license, item.note))
    table = markdown_table(("name", "task", "metric", "data", "splits", "images", "licence", "note"), rows)
    groups = "; ".join(f"{name} = {', '.join(members)}" for name, members in GROUPS.items() if name != ALL)
    return f"{table}\n\nGroups: {groups}; {ALL} = those whose data is on this machine"
