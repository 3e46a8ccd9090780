"""Small distillers, and what a training changes in them."""

from dataclasses import fields

import pytest
import torch
import transformers as hf
from peft import get_peft_model
from zoo import SIZES, images, tiny_vit

from singer_hf import SingerConfig, SingerDistiller
from singer_hf.baselines.recipes import recipe_settings

_ADAPTER = {item.name for item in fields(SingerConfig)}


def adapter_part(recipe):
    """Fields of SingerConfig in a recipe."""
    return {name: value for name, value in recipe_settings(recipe).items() if name in _ADAPTER}


def objective_part(recipe):
    """Arguments of SingerDistiller in a recipe."""
    return {name: value for name, value in recipe_settings(recipe).items() if name not in _ADAPTER}


PAPER = objective_part("paper")
pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


def adapted(layers=(1, 3), teacher=None, **config):
    teacher = tiny_vit(attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.5) if teacher is None else teacher
    config = {"init_scale": 1.0, "gate": "none", **config}  # every token is refined, and visibly
    return get_peft_model(teacher, SingerConfig(r=4, layers_to_transform=list(layers), **config))


def small_student(**config):
    torch.manual_seed(1)
    sizes = {**SIZES, "hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 32, **config}
    return hf.ViTModel(hf.ViTConfig(**sizes), add_pooling_layer=False)


def make(layers=(1, 3), teacher=None, student=None, config=None, **settings):
    torch.manual_seed(0)
    student = small_student() if student is None else student
    settings = {**PAPER, **settings}
    return SingerDistiller(student, adapted(layers, teacher, **(config or {})), **settings).train()


def train(distiller, steps=3, weight_decay=0.0):
    trained = [p for p in distiller.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=weight_decay)
    for step in range(steps):
        optimizer.zero_grad()
        distiller(images(seed=step)).loss.backward()
        optimizer.step()
    return distiller


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
