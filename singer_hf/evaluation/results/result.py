"""One metric of an evaluation, with the settings that repeat it."""

from dataclasses import dataclass, field

from singer_hf.evaluation.metrics import TASK_METRICS


@dataclass(frozen=True)
class Result:
    """One metric of one model on one benchmark.

    Attributes:
        model: Name of the model.
        benchmark: Name of the benchmark.
        task: "classification", "segmentation", "depth" or "knn".
        metric: Name of the metric.
        value: Value of the metric; accuracies and IoU in [0, 1], errors of depth in metres.
        low: Lower end of the 95 % bootstrap interval.
        high: Upper end.
        n: Number of test images.
        seed: Seed of the run.
        protocol: Name of the protocol.
        changes: Settings that differ from the protocol.
        head: Name of the chosen head, or description of the nearest-neighbour vote.
        dataset: Name of the data, a Hub id or a folder's own name.
        data_fingerprint: Hash of the rows.
        image_size: (height, width) of the model's input in pixels.
        num_parameters: Number of the model's parameters.
        num_train: Number of training images; 0 for a reused head, whose name gives it.
        notes: What the model lacks for the protocol, and the replacement.
        adapter: Name of the SiNGER adapter with which the model was evaluated; empty without one.
        source: Hash of the Hub id or folder of the model, which tells models of the same name apart; may be empty.
    """

    model: str
    benchmark: str
    task: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    seed: int
    protocol: str
    changes: dict[str, object] = field(default_factory=dict)
    head: str = ""
    dataset: str = ""
    data_fingerprint: str = ""
    image_size: tuple[int, int] = (0, 0)
    num_parameters: int = 0
    num_train: int = 0
    notes: tuple[str, ...] = ()
    adapter: str = ""
    source: str = ""

    @property
    def is_main(self) -> bool:
        """Whether this is the main metric of the benchmark."""
        return self.metric == TASK_METRICS[self.task].main_metric()

    @property
    def row(self) -> tuple[str, str, str, str]:
        """What a later result replaces: those of the same model on the same benchmark, task and protocol."""
        return (self.model, *self.column)

    @property
    def column(self) -> tuple[str, str, str]:
        """What is compared in one column of a table: a benchmark, a task and a protocol."""
        return self.benchmark, self.task, self.protocol
