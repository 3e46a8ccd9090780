"""The teacher of the demo: a small ViT that learns class, segmentation and depth of drawn scenes."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, PreTrainedConfig, ViTImageProcessor

from singer_hf.data.drawn_scenes import CLASS_NAMES, SEGMENT_NAMES, draw_scene
from singer_hf.demo.planted_model import reserve_units
from singer_hf.evaluation.counts import add_counts, count_confusion, count_depth
from singer_hf.evaluation.metrics import DepthMetric, mean_iou
from singer_hf.vit.inference import evaluation_mode

IMAGE_SIZE, PATCH_SIZE = 64, 8  # pixels
CELLS = 4  # the dense targets have CELLS x CELLS cells per patch
_BATCH = 250


@dataclass
class Scenes:
    """Drawn scenes as tensors.

    Attributes:
        pixels: Images (M, 3, 64, 64), uint8.
        labels: Classes (M,).
        segments: Class of each cell (M, 32, 32).
        log_depth: Logarithm of the depth in metres of each cell (M, 32, 32).
    """

    pixels: Tensor
    labels: Tensor
    segments: Tensor
    log_depth: Tensor

    def pixel_values(self, index: slice | Tensor) -> Tensor:
        """The selected images (B, 3, 64, 64), normalised with mean and standard deviation 0.5."""
        return self.pixels[index].float().div(127.5).sub(1.0)


def draw_scenes(num_images: int, seed: int) -> Scenes:
    """Draws the first ``num_images`` scenes of the series ``seed``."""
    stride = PATCH_SIZE // CELLS
    pixels, labels, segments, log_depth = [], [], [], []
    for index in tqdm(range(num_images), desc="drawing scenes"):
        scene = draw_scene(index, seed, IMAGE_SIZE)
        pixels.append(torch.frombuffer(bytearray(scene.image.tobytes()), dtype=torch.uint8))
        labels.append(scene.label)
        segments.append(torch.from_numpy(scene.mask[::stride, ::stride].copy()))
        log_depth.append(torch.from_numpy(scene.depth[::stride, ::stride].copy()).log())
    images = torch.stack(pixels).view(-1, IMAGE_SIZE, IMAGE_SIZE, 3).permute(0, 3, 1, 2).contiguous()
    return Scenes(images, torch.tensor(labels), torch.stack(segments), torch.stack(log_depth))


class SceneTeacher(nn.Module):
    """The teacher with the heads that it is trained with; only the teacher is saved."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.vit = AutoModel.from_config(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, len(CLASS_NAMES))
        self.dense = nn.Linear(config.hidden_size, (len(SEGMENT_NAMES) + 1) * CELLS**2)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits (B, K), segment logits (B, S, 32, 32) and log depth (B, 32, 32) of images (B, 3, 64, 64)."""
        tokens = self.vit(pixel_values).last_hidden_state
        side = IMAGE_SIZE // PATCH_SIZE
        maps = F.pixel_shuffle(self.dense(tokens[:, 1:]).mT.unflatten(2, (side, side)), CELLS)
        return self.classifier(tokens[:, 0]), maps[:, :-1], maps[:, -1]


def new_scene_teacher(hidden_size: int, initializer_range: float) -> SceneTeacher:
    """A ViT teacher of 6 blocks with random weights; the last hidden unit of every MLP is reserved for planting.

    Args:
        hidden_size: Width.
        initializer_range: Standard deviation of the initial weights.
    """
    config = AutoConfig.for_model(
        "vit",
        hidden_size=hidden_size,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=4 * hidden_size + 1,  # the last unit of each block is reserved
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        initializer_range=initializer_range,
    )
    model = SceneTeacher(config)
    reserve_units(model.vit)
    return model


def scene_processor() -> ViTImageProcessor:
    """The image processor of the teacher."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def train_on_scenes(
    model: SceneTeacher, scenes: Scenes, num_epochs: int, batch_size: int, learning_rate: float
) -> None:
    """Trains the teacher and its heads with AdamW and a one-cycle schedule.

    Args:
        model: The teacher with its heads.
        scenes: Training scenes.
        num_epochs: Passes over the scenes.
        batch_size: Scenes per step; an incomplete last batch is dropped.
        learning_rate: Peak learning rate.
    """
    steps = len(scenes.labels) // batch_size * num_epochs
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    with tqdm(total=steps, desc="training the teacher") as bar:
        for _ in range(num_epochs):
            order = torch.randperm(len(scenes.labels))
            for index in order[: len(order) // batch_size * batch_size].split(batch_size):
                loss = _training_loss(model, scenes, index)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def _training_loss(model: SceneTeacher, scenes: Scenes, index: Tensor) -> Tensor:
    batch = [scenes.pixel_values(index), scenes.segments[index].long(), scenes.log_depth[index]]
    if torch.rand(()) < 0.5:
        batch = [tensor.flip(-1) for tensor in batch]
    pixel_values, segments, log_depth = batch
    logits, segment_logits, depth = model(pixel_values)
    return (
        F.cross_entropy(logits, scenes.labels[index], label_smoothing=0.05)
        + F.cross_entropy(segment_logits, segments)
        + F.l1_loss(depth, log_depth)
    )


def evaluate_on_scenes(model: SceneTeacher, scenes: Scenes) -> dict[str, float]:
    """``top1`` and ``mean_iou`` in [0, 1] and ``depth_rmse`` in metres, at the resolution of the heads."""
    hits, confusion, depth_counts = 0, 0, {}
    with evaluation_mode(model):
        for start in range(0, len(scenes.labels), _BATCH):
            index = slice(start, start + _BATCH)
            logits, segment_logits, log_depth = model(scenes.pixel_values(index))
            hits += int((logits.argmax(1) == scenes.labels[index]).sum())
            segments = scenes.segments[index].long()
            confusion = confusion + count_confusion(segment_logits.argmax(1), segments, len(SEGMENT_NAMES))
            depths = count_depth(log_depth.exp(), scenes.log_depth[index].exp(), max_depth=float("inf"))
            depth_counts = add_counts(depth_counts, depths)
    rmse = DepthMetric.from_counts(depth_counts)["rmse"]
    return {"top1": hits / len(scenes.labels), "mean_iou": mean_iou(confusion), "depth_rmse": rmse}
