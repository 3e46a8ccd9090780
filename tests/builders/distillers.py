"""Small distillers, and what a training changes in them."""

import pytest
import torch
import transformers as hf
from peft import get_peft_model
from zoo import SIZES, images, tiny_vit

from singer_hf import SingerConfig, SingerDistiller

# The paper's objective.
PAPER = {"target_norm": "none", "outlier_weight": 0.01, "outlier_loss": "absolute", "info_weight": 1.0}
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
