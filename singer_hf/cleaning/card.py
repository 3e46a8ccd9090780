"""The model card of a cleaned teacher's adapter."""

from pathlib import Path
from typing import TYPE_CHECKING

from singer_hf.cards.adapter_card import add_adapter_text
from singer_hf.cards.markdown import code, plain_text
from singer_hf.cards.privacy import without_paths
from singer_hf.cleaning.report import PICTURE, CleaningReport

if TYPE_CHECKING:
    from singer_hf.training.adapter.trainer import AdapterTrainer

_TEXT = """## What it does

It removes the high-norm artifact tokens of the teacher and leaves its weights unchanged; no student is involved.
{reasons}

{table}

Outliers: share of the patches whose norm is more than the median plus {mad_factor:g} robust deviations of their
image; p99 / median: 99 % quantile of an image's patch norms over their median, mean over images. {num_images} of the
training images; after the cleaning as the model runs, with every block behind an adapter reading refined tokens.
{picture}
## Training

{steps} steps of {batch} images each, {losses}

## Limits

- The thresholds were estimated on the training images{dataset}: audit the cleaned teacher on images of your own
  (`singer-hf audit --model_name_or_path TEACHER --adapter_name_or_path ADAPTER --inline --dataset_name IMAGES
  --output_dir AUDIT`).
- It changes features of patches with artifacts, and through attention a little of all later features. A head that was
  trained on the raw features should be trained again.
{left}"""


def write_cleaning_card(trainer: "AdapterTrainer", folder: Path, report: CleaningReport) -> None:
    """Writes ``README.md`` beside an adapter: what was cleaned, the table before and after, the training, limits.

    Args:
        trainer: The trainer of the adapter.
        folder: The folder of the adapter.
        report: Both audits.
    """
    args = trainer.args
    dataset = trainer.run_facts.get("dataset")
    share = "" if args.info_share == 1 else f", of {args.info_share:g} of the images in a step"
    left = ", ".join(map(str, report.left))
    text = _TEXT.format(
        reasons="\n".join(map(plain_text, report.plan.reasons)),
        table=report.table(),
        mad_factor=report.before.rule["mad_factor"],
        num_images=report.before.num_images,
        picture=f"\n![Norms and principal components before and after]({PICTURE})\n"
        if (folder / PICTURE).is_file()
        else "",
        steps=trainer.state.global_step,
        batch=args.images_per_step,
        losses=f"`outlier_loss` {args.outlier_loss} (weight {args.outlier_weight:g}), `info_loss` {args.info_loss} "
        f"(weight {args.info_weight:g}{share}), learning rate {args.learning_rate:g}, seed {args.seed}.",
        dataset=f" of {code(without_paths(dataset))}" if dataset else "",
        left=f"- Artifacts are left after the blocks {left}.\n" if left else "",
    )
    add_adapter_text(folder, text, args.license)
