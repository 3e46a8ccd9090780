"""How good frozen features are: nearest neighbours, linear probes, segmentation and depth.

``singer_hf.evaluation.evaluate_metrics`` holds the metrics as ``evaluate.Metric`` objects; it is not imported here.
"""

from singer_hf.evaluation.feature_cache import cache_features, cache_fingerprint, cache_if_it_fits
from singer_hf.evaluation.fit import Candidate, FitResult, FitSettings, fit_heads, head_metrics, sweep
from singer_hf.evaluation.frozen_features import FrozenFeatures
from singer_hf.evaluation.knn import knn_accuracy, knn_predict
from singer_hf.evaluation.linear_probe import fit_logistic, linear_probe
from singer_hf.evaluation.probes import DepthHead, LinearHead, SegmentationHead
from singer_hf.evaluation.protocols import PROTOCOLS, Protocol, get_protocol
from singer_hf.evaluation.sliding_window import head_predictor, sliding_window
from singer_hf.evaluation.sources import ArrayFeatures, ModelFeatures
from singer_hf.evaluation.tasks import ClassificationTask, DepthTask, SegmentationTask

__all__ = [
    "PROTOCOLS",
    "ArrayFeatures",
    "Candidate",
    "ClassificationTask",
    "DepthHead",
    "DepthTask",
    "FitResult",
    "FitSettings",
    "FrozenFeatures",
    "LinearHead",
    "ModelFeatures",
    "Protocol",
    "SegmentationHead",
    "SegmentationTask",
    "cache_features",
    "cache_fingerprint",
    "cache_if_it_fits",
    "fit_heads",
    "fit_logistic",
    "get_protocol",
    "head_metrics",
    "head_predictor",
    "knn_accuracy",
    "knn_predict",
    "linear_probe",
    "sliding_window",
    "sweep",
]
