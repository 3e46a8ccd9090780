"""Audits vision transformers: which patch tokens are high-norm artifacts, where, how strong, and what to do.

    singer-hf audit --model_name_or_path demo-teacher --output_dir audit/
    singer-hf audit --model_name_or_path facebook/dinov2-base --dataset_name photos/ --output_dir audit/
    singer-hf audit --model_name_or_path teacher/ --adapter_name_or_path run/singer --output_dir audit/
    singer-hf audit --model_name_or_path teacher/ --adapter_name_or_path cleaned/ --inline --output_dir audit/
    singer-hf audit --model_name_or_path teacher/ fitnet/ run/ --dataset_name photos/ --output_dir audit/

Writes audit.json, figures/*.png and report.html, a self-contained page. Of several models the first is the teacher,
and the others are compared with it. Without `--dataset_name` the images are drawn scenes. A YAML file with the same
names can precede or replace the flags.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification

from singer_hf.commands.command_line import CommandParser, one_line_errors
from singer_hf.configs import TRAINED, find
from singer_hf.inspection.inputs import AuditSettings
from singer_hf.inspection.run import run_audit
from singer_hf.tuner.loading import load_adapter
from singer_hf.vit.loading import load_model

GROUPS = {
    "Models and images": (
        *("model_name_or_path", "adapter_name_or_path", "inline", "dataset_name", "dataset_split", "image_column"),
        *("max_samples", "seed", "processor_name_or_path", "image_size"),
    ),
    "Measures": ("mad_factor", "absolute_threshold"),
    "Output and speed": ("output_dir", "num_pictures", "batch_size", "num_workers", "device"),
}


def load_audited_model(name: str, settings: AuditSettings) -> nn.Module:
    """Loads a model, with its classification head if it has one, and its adapter if one is given.

    Args:
        name: Folder or Hub id.
        settings: For the adapter and the device.

    Raises:
        ValueError: If the device is unknown or the adapter does not fit the model.
    """
    device = _device(settings.device)
    model, folder = load_model(name, "model_name_or_path"), find(name, TRAINED)
    if any("ForImageClassification" in kind for kind in AutoConfig.from_pretrained(folder).architectures or ()):
        model = AutoModelForImageClassification.from_pretrained(folder)
    if settings.adapter_name_or_path is not None:
        model = load_adapter(model, settings.adapter_name_or_path)
    return model.to(device).eval()


def _device(name: str | None) -> torch.device:
    try:
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"`device` must be a device of torch, got {name!r}: {error}") from error


@one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Parses the flags or the YAML file, runs the audit, and prints the verdicts.

    Args:
        arguments: The flags; None takes those of the process.
    """
    given = sys.argv[1:] if arguments is None else arguments
    (settings,) = CommandParser(AuditSettings, command="audit", about=__doc__, groups=GROUPS).parse(given)
    headlines = run_audit(settings, partial(load_audited_model, settings=settings))
    print(*headlines, f"See {Path(settings.output_dir) / 'report.html'}", sep="\n")
