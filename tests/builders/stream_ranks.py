"""A stream on two gloo processes, stopped in its second pass and resumed: `torchrun --nproc_per_node 2 ... FOLDER`."""

import json
import sys
from pathlib import Path

import torch.distributed as dist
from runs import StopAt, differing, image_dataset, images_seen, make_resumable, snapshot

STEP = 7  # 5 steps a pass


def train(folder: Path, *callbacks: object, resume: bool = False) -> tuple[dict, list]:
    stream = image_dataset(20).to_iterable_dataset(num_shards=4)
    options = {"per_device_train_batch_size": 2, "max_steps": 10, "save_steps": STEP}
    trainer = make_resumable(folder, train_dataset=stream, callbacks=list(callbacks), **options)
    seen = images_seen(trainer)
    trainer.train(resume_from_checkpoint=resume or None)
    return snapshot(trainer.distiller), seen


def main(folder: Path) -> None:
    straight, expected = train(folder / "straight")
    train(folder / "stopped", StopAt(STEP))
    resumed, seen = train(folder / "stopped", resume=True)
    equal = {"images": seen == expected[STEP:], "weights": not differing(resumed, straight)}
    gathered = [None, None]
    dist.all_gather_object(gathered, equal)
    if dist.get_rank() == 0:
        print(
            json.dumps(
                {"world": dist.get_world_size()} | {name: all(part[name] for part in gathered) for name in equal}
            )
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
