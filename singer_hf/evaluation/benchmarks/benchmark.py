"""Definition of a benchmark: data, columns, splits, classes and default protocol."""

from dataclasses import dataclass
from typing import Literal

from singer_hf.evaluation.metrics import TASK_METRICS

TaskName = Literal["classification", "segmentation", "depth", "knn"]
DRAWN = "drawn scenes"


@dataclass(frozen=True)
class Benchmark:
    """A data set and its use as a benchmark.

    Attributes:
        name: Name of the benchmark.
        task: "classification", "segmentation", "depth" or "knn".
        train_name: Hub id, local folder, "drawn scenes", or "" where no public copy is known.
        test_name: Likewise for the test split; "" means ``train_name``.
        config_name: Configuration of the data set, if it has several.
        train_split: Split on which the heads are trained; "" for a benchmark that reuses another one's head.
        test_split: Split on which the metrics are computed.
        image_column: Column with the images; None searches for it.
        target_column: Column with class, mask or depth; None searches for it.
        num_classes: Number of classes; None takes it from the data (classification only).
        class_names: Names of the classes of a mask, for figures; empty if they are not needed.
        license: Licence or terms of the data, in short.
        size: Number of training and test images, as text.
        protocol: Default protocol.
        head_from: Benchmark whose trained head is reused.
        known_classes: Classes that a reused head may predict under a protocol with ``all_classes=False``; empty
            means all.
        imagenet_classes: Whether labels are converted to the 1000 ImageNet classes.
        ignore_values: Values of a mask that are ignored.
        label_offset: Number added to the other values of a mask.
        depth_scale: Metres per unit of an integer depth map.
        long_tail: Whether accuracy is also split by the classes' frequency.
        note: Note for the user.
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
        """Name of the main metric."""
        return TASK_METRICS[self.task].main_metric()
