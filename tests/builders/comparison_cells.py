"""Cells of a comparison with numbers that can be checked by hand."""

# probe_cls by seed: the differences to fitnet are 10, 12 and 14 points for singer, -2, 0 and 3 for clip.
METRICS = {
    "fitnet": {"probe_cls": [0.40, 0.41, 0.42], "outlier_ratio": [2.5, 2.6, 2.7]},
    "singer": {"probe_cls": [0.50, 0.53, 0.56], "outlier_ratio": [1.3, 1.3, 1.3], "e_prob": [0.1, 0.15, 0.2]},
    "clip": {"probe_cls": [0.38, 0.41, 0.45], "outlier_ratio": [2.3, 2.4, None], "e_prob": [None] * 3},
}


def cells(by_method=METRICS, seeds=3):
    return [
        {
            "method": method,
            "seed": seed,
            "metrics": {name: values[seed] for name, values in metrics.items()},
            "curve": [{"step": 500 * (i + 1), "knn_top1": 0.1 * (i + 1) + 0.02 * seed} for i in range(3)],
        }
        for method, metrics in by_method.items()
        for seed in range(seeds)
    ]
