"""Three AdamW steps of the released code on tiny random ViTs: every term and every gradient norm."""

import json

import pytest
import torch
from distillers import adapter_part, objective_part
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import ViTModel

from singer_hf import SingerConfig, SingerDistiller

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def tensors(golden):
    return load_file(golden / "tensors.safetensors")


@pytest.fixture(scope="module")
def expected(golden):
    return json.loads((golden / "expected.json").read_text())


def load(folder):
    return ViTModel.from_pretrained(folder, add_pooling_layer=False)


def with_golden_projectors(distiller, tensors):
    for name, projector in distiller.projectors.items():
        projector.load_state_dict({kind: tensors[f"projector.{name}.{kind}"] for kind in ("weight", "bias")})
    return distiller.train()


def gradient_norm(module):
    return torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]).norm().item()


@pytest.fixture(scope="module")
def steps(golden, tensors, expected):
    """What our distiller gives for the three steps."""
    config = SingerConfig(
        r=expected["rank"],
        layers_to_transform=expected["teacher_layers"],
        **{**adapter_part("reference"), "null_threshold": expected["null_threshold"]},
    )
    distiller = SingerDistiller(
        load(golden / "student"),
        get_peft_model(load(golden / "teacher"), config),
        student_layers=expected["student_layers"],
        **{**objective_part("reference"), "outlier_quantile": expected["outlier_quantile"]},
    )
    with_golden_projectors(distiller, tensors)
    weight_decay, learning_rate = expected["optimizer"]["weight_decay"], expected["optimizer"]["lr"]
    trained = [p for p in distiller.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay)
    steps = []
    for pixel_values in tensors["pixel_values"]:
        output = distiller(pixel_values)
        optimizer.zero_grad()
        output.loss.backward()
        steps.append(
            {
                "loss_kd": expected["weights"]["kd"] * output.kd_loss.item(),
                "loss_outlier": expected["weights"]["outlier"] * output.outlier_loss.item(),
                "loss_info": expected["weights"]["info"] * output.info_loss.item(),
                "total": output.loss.item(),
                "grad_norm_student": gradient_norm(distiller.student),
                "grad_norm_projector": gradient_norm(distiller.projectors),
                "grad_norm_adapter": gradient_norm(distiller.teacher),
            }
        )
        optimizer.step()
    return steps


@pytest.mark.parametrize("step", range(3))
def test_every_term_and_gradient_norm_of_a_step_is_the_released_codes(steps, expected, step):
    assert len(steps) == len(expected["trajectory"]) == 3
    assert steps[step] == pytest.approx(expected["trajectory"][step], rel=TOLERANCE, abs=0)


def test_a_bare_teacher_gives_the_released_codes_fitnet_loss(golden, tensors, expected):
    """The released code sums over the two blocks; ours is their mean."""
    distiller = SingerDistiller(
        load(golden / "student"),
        load(golden / "teacher"),
        teacher_layers=expected["teacher_layers"],
        student_layers=expected["student_layers"],
        **objective_part("reference"),
    )
    output = with_golden_projectors(distiller, tensors)(tensors["pixel_values"][0])
    number = len(expected["teacher_layers"])
    assert number * output.kd_loss.item() == pytest.approx(expected["fitnet_loss_kd"], rel=TOLERANCE, abs=0)
    assert output.loss.item() == output.kd_loss.item()


def test_the_default_pairing_is_the_recorded_one(golden, expected):
    distiller = SingerDistiller(load(golden / "student"), load(golden / "teacher"))
    assert (distiller.teacher_layers, distiller.student_layers) == (
        expected["teacher_layers"],
        expected["student_layers"],
    )
