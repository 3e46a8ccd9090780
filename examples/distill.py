"""Distils a vision transformer into a small student with SiNGER.

The demo, on drawn scenes, without any download:

    accelerate launch examples/distill.py

A run on your images, from any ViT of the Hub, timm or a folder:

    accelerate launch examples/distill.py --teacher_name_or_path facebook/dinov2-large \
        --student_config examples/configs/students/vit-small-patch14.json --dataset_name path/to/images \
        --output_dir outputs/student --num_train_epochs 100 --per_device_train_batch_size 64

or from a YAML file with the same names, `accelerate launch examples/distill.py examples/configs/vit-l_to_vit-t.yaml`.
Every field of SingerTrainingArguments and SingerConfig is a flag: `--help` lists them. The rank of the adapter is
`--rank`, also `--r`, which torchrun takes for one of its own flags.
`--recipe` sets several of them at once, `--method` takes another method than SiNGER, to compare with.
"""

import sys
from pathlib import Path

if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path.pop(0)  # this folder holds an evaluate.py, which would hide the library of that name

from singer_hf.commands.distill import main

if __name__ == "__main__":
    main()
