"""Base of `evaluate` metrics that are computed from running sums, without network and cache files."""

from typing import Any

import datasets
import evaluate
import torch
from torch import Tensor

TOKENS = datasets.Sequence(datasets.Sequence(datasets.Value("float32")))
NORMS = datasets.Sequence(datasets.Value("float32"))


class StreamingMetric(evaluate.Metric):
    """A metric that adds every batch to a few sums, so that memory does not grow with the number of images.

    ``add_batch`` and ``compute`` take tensors, arrays or nested lists; ``compute`` returns the result and resets the
    sums. Subclasses implement ``_start`` (empty sums), ``_update`` (adds a batch) and ``_finish`` (the result).
    """

    _description = ""
    _feature: Any = TOKENS

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self._description,
            citation="",
            inputs_description="",
            features=datasets.Features({"predictions": self._feature, "references": self._feature}),
        )

    def _build_data_dir(self) -> str:
        return self._data_dir_root  # nothing is written there

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Adds a batch.

        Args:
            predictions: Patch tokens (B, N, D) or norms (B, N) of the student.
            references: The same of the teacher, for the same images in the same order.
            **kwargs: Not supported.

        Raises:
            ValueError: If the two differ in images or patches, one is missing, or there are other arguments.
        """
        if kwargs:
            raise ValueError(f"`add_batch` takes `predictions` and `references`, got {sorted(kwargs)} too")
        predictions, references = _tensor(predictions), _tensor(references)
        if predictions.shape[:2] != references.shape[:2]:
            raise ValueError(
                "`predictions` and `references` must hold the same images and patches, got shapes "
                f"{tuple(predictions.shape)} and {tuple(references.shape)}; bring them to one grid (`resize_tokens`)"
            )
        if not hasattr(self, "_sums"):
            self._sums: dict[str, Any] = self._start()
        self._update(predictions, references)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Adds one image.

        Args:
            prediction: Patch tokens (N, D) or norms (N,) of the student.
            reference: The same of the teacher.
            **kwargs: Not supported.
        """
        self.add_batch(predictions=_tensor(prediction)[None], references=_tensor(reference)[None], **kwargs)

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, float | None]:
        """Returns the metrics over all batches since the last call, and resets the sums.

        Args:
            predictions: A last batch of the student, see :meth:`add_batch`; optional.
            references: The same of the teacher; optional.
            **kwargs: Ignored.

        Raises:
            ValueError: If no batch was added.
        """
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        if not hasattr(self, "_sums"):
            raise ValueError("`compute` needs features: pass them, or call `add_batch` first")
        result = self._finish()
        del self._sums
        return result

    def _start(self) -> dict[str, Any]:
        raise NotImplementedError

    def _update(self, predictions: Tensor, references: Tensor) -> None:
        raise NotImplementedError

    def _finish(self) -> dict[str, float | None]:
        raise NotImplementedError


def _tensor(values: Any) -> Tensor:
    if values is None:
        raise ValueError("`predictions` and `references` must both be given, got None")
    return torch.as_tensor(values).detach().float()
