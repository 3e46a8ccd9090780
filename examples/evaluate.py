"""Evaluates frozen features: linear probes, nearest neighbours, segmentation and depth, on benchmarks or your data.

    python examples/evaluate.py --list
    python examples/evaluate.py --model_name_or_path facebook/dinov2-small outputs/student --benchmark food101 \
        --protocol dinov2 --output_dir outputs/evaluation
    python examples/evaluate.py --model_name_or_path outputs/student --benchmark camvid --dataset_name path/to/camvid
    python examples/evaluate.py --model_name_or_path outputs/student --task knn --dataset_name path/to/imagefolder

Writes results.json, results.md, per_class_*.json and figures/*.png into output_dir. Several models share one table.
`--benchmark` takes several names and the groups DS, FG, paper and scenes. A YAML file with the same names can precede
or replace the flags.
"""

import sys
from pathlib import Path

if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path.pop(0)  # this folder holds an evaluate.py, which would hide the library of that name

from singer_hf.commands.evaluate import main

if __name__ == "__main__":
    main()
