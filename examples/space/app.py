"""A Gradio Space: upload a photo, choose a vision transformer, see its norm maps before and after a clean-up.

pip install "singer-hf[plots]" gradio && python app.py
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor, nn

import singer_hf  # noqa: F401  registers SiNGER with PEFT
from singer_hf.artifacts.outliers import OutlierRule, outlier_ratio
from singer_hf.baselines.cleanups.neighbor_mean import NeighborMean
from singer_hf.cards.drawing import FONT, MAP_COLOURS, log_ticks, new_figure
from singer_hf.cleaning.plan import plan_cleaning
from singer_hf.data.image_processors import image_spec, load_image_processor
from singer_hf.extraction.preprocessing import make_transform
from singer_hf.inspection.measure.audit import audit
from singer_hf.inspection.measure.snapshots import Snapshot, take_snapshot
from singer_hf.inspection.report.maps import pca_colours
from singer_hf.inspection.report.page import figure_png
from singer_hf.tuner.loading import load_adapter
from singer_hf.vit.features import first_tensor
from singer_hf.vit.loading import load_model
from singer_hf.vit.structure import view_vit

# Add models of your own here, and adapters that `singer-hf clean --push_to_hub` has uploaded: model -> adapter.
MODELS = (
    "facebook/dinov2-large",
    "facebook/dinov2-base",
    "facebook/dinov2-small",
    "facebook/dinov2-with-registers-large",
    "google/vit-large-patch16-224",
)
ADAPTERS: dict[str, str] = {}
EDGES = (224, 448, 672)

ABOUT = """# Artifact tokens of vision transformers

Large vision transformers have a few patch tokens of very high norm, mostly on plain background. Upload a photo and see
where they are, and what is left after a clean-up. [How it works](https://arxiv.org/abs/2509.20986).
"""
NEIGHBORS = (
    "No trained adapter was given for this model. What you see is an **untrained** clean-up: behind block {block} "
    "every outlier is replaced by the mean of its ordinary neighbours. `singer-hf clean` trains an adapter that keeps "
    "what is the token's own."
)
ADAPTER = "The clean-up is the trained adapter `{adapter}`."
NOTHING = "On this photo the model has no artifacts, so there is nothing to clean."
CAVEAT = "One photo cannot tell whether a model has artifacts. `singer-hf audit` measures hundreds."


def inspect_photo(
    photo: Image.Image | None, model_name: str, adapter: str = "", edge: int = 448
) -> tuple[Image.Image, str]:
    """Draws norm maps and components of a photo's patch tokens before and after a clean-up.

    Args:
        photo: The photo.
        model_name: Hub id or folder of a vision transformer.
        adapter: Hub id or folder of a SiNGER adapter of this model. Empty: the one in ``ADAPTERS``, or none.
        edge: Longer edge to which the photo is resized, in pixels.

    Returns:
        The picture, and what it shows as markdown.

    Raises:
        ValueError: If there is no photo, or the model or the adapter does not fit.
        FileNotFoundError: If there is no such model.
    """
    if photo is None:
        raise ValueError("Upload a photo first.")
    adapter = adapter.strip() or ADAPTERS.get(model_name, "")
    model = load(model_name)
    pixel_values = prepare(photo, model_name, edge)
    plan = plan_cleaning(audit(model, [pixel_values], name=model_name, progress=False))
    before = snapshot(model, model_name, pixel_values)
    lines = [f"**Before.** {plan.reasons[0]} {ratio(before)}"]
    if adapter:
        after = snapshot(load(model_name, adapter), model_name, pixel_values)
        lines += [f"**After.** {ADAPTER.format(adapter=adapter)} {ratio(after)}"]
    elif plan.blocks:
        with neighbors_mean(model, plan.blocks[0], before.grid):
            after = snapshot(model, model_name, pixel_values)
        lines += [f"**After.** {NEIGHBORS.format(block=plan.blocks[0])} {ratio(after)}"]
    else:
        return draw({"no artifacts": before}), "\n\n".join([lines[0], NOTHING, CAVEAT])
    return draw({"before": before, "after": after}), "\n\n".join([*lines, CAVEAT])


@lru_cache(maxsize=2)
def load(model_name: str, adapter: str = "") -> nn.Module:
    """A model, with an adapter a copy of its own; the last two are kept."""
    model = load_model(model_name, "model_name").eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return (load_adapter(model, adapter) if adapter else model).to(device).eval()


def prepare(photo: Image.Image, model_name: str, edge: int) -> Tensor:
    """The photo as pixel values (1, 3, H, W): its own shape, in whole patches."""
    patch = view_vit(load(model_name)).patch_size
    scale = edge / max(photo.size)
    size = [max(1, round(side * scale / step)) * step for side, step in zip(photo.size[::-1], patch, strict=True)]
    transform = make_transform(load(model_name), load_image_processor(model_name), tuple(size))
    return transform(photo.convert("RGB"))[None]


def snapshot(model: nn.Module, model_name: str, pixel_values: Tensor) -> Snapshot:
    """Norms and features of the model as it runs."""
    spec = image_spec(load_image_processor(model_name))
    return take_snapshot(model, pixel_values, name=model_name, mean=spec.mean, std=spec.std, inline=True)


@contextmanager
def neighbors_mean(model: nn.Module, block: int, grid: tuple[int, int]) -> Iterator[None]:
    """A context in which outliers behind a block become the mean of their neighbours; all later blocks read that."""
    view = view_vit(model)
    refiner = NeighborMean(view.num_prefix_tokens, grid, rule=OutlierRule())

    def hook(module: nn.Module, args: tuple, output: object) -> object:
        tokens = refiner.refine(first_tensor(output))
        return (tokens, *output[1:]) if isinstance(output, tuple) else tokens

    handle = view.blocks[block].register_forward_hook(hook, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def ratio(found: Snapshot) -> str:
    """The largest p99/median of all blocks in words."""
    worst = max(float(outlier_ratio(norms)) for norms in found.norms)
    return f"Largest p99 / median of the patch norms over the blocks: **{worst:.2f}**."


def draw(found: dict[str, Snapshot]) -> Image.Image:
    """Norms and components after the last block, a column for each; norms have one scale, components one basis."""
    from matplotlib.colors import LogNorm

    norms = {title: one.norms[-1] / one.norms[-1].median() for title, one in found.items()}
    scale = LogNorm(0.5, max(4.0, *(float(values.max()) for values in norms.values())), clip=True)
    rows, columns = next(iter(found.values())).grid
    figure = new_figure(2.6 * len(found) + 1.2, 2 * 2.6 * rows / columns + 0.4)
    axes = figure.subplots(2, len(found), squeeze=False)
    reference = list(found.values())[-1].features
    for column, (title, one) in enumerate(found.items()):
        shown = axes[0][column].imshow(norms[title].view(one.grid), norm=scale, cmap=MAP_COLOURS)
        axes[1][column].imshow(pca_colours(one.features, reference).view(*one.grid, 3))
        axes[0][column].set_title(title, fontsize=FONT + 2)
    for axis, label in zip(axes[:, 0], ("patch norms", "components"), strict=True):
        axis.set_ylabel(label, fontsize=FONT)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    bar = figure.colorbar(shown, ax=axes, pad=0.02, shrink=0.48, anchor=(0, 1), aspect=14)
    bar.set_label("norm / median", fontsize=FONT)
    bar.ax.tick_params(labelsize=FONT)
    log_ticks(bar.ax.yaxis, scale.vmin, scale.vmax)
    bar.ax.minorticks_off()
    return Image.open(BytesIO(figure_png(figure)))


def interface() -> object:
    """The page."""
    import gradio as gr

    def run(photo: Image.Image | None, model_name: str, adapter: str, edge: int) -> tuple[Image.Image, str]:
        try:
            return inspect_photo(photo, model_name, adapter, edge)
        except (ValueError, OSError, RuntimeError) as error:  # what the user can put right
            raise gr.Error(str(error)) from error

    with gr.Blocks(title="Artifact tokens of vision transformers") as page:
        gr.Markdown(ABOUT)
        with gr.Row():
            with gr.Column(scale=1):
                photo = gr.Image(type="pil", label="Photo")
                model = gr.Dropdown(list(MODELS), value=MODELS[0], label="Model")
                edge = gr.Radio(list(EDGES), value=EDGES[len(EDGES) // 2], label="Longer edge in pixels")
                adapter = gr.Textbox(label="SiNGER adapter (optional)", placeholder="user/adapter on the Hub")
                button = gr.Button("Show norm maps", variant="primary")
            with gr.Column(scale=2):
                maps = gr.Image(type="pil", label="Before and after", show_label=False, interactive=False)
                text = gr.Markdown()
        button.click(run, [photo, model, adapter, edge], [maps, text], concurrency_limit=1)
    return page


if __name__ == "__main__":
    interface().launch()
