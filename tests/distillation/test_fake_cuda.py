"""A forward pass on a GPU that is not there: shapes, types and devices only, in all types of mixed precision.

An operation between a tensor on the GPU and one that was left on the CPU fails here as it would there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from waits import Waits
from zoo import images, tiny, tiny_vit

from singer_hf import SingerConfig, SingerDistiller
from singer_hf.baselines.cleanups.clip_norm import ClipNorm
from singer_hf.baselines.cleanups.local_outliers import LocalOutlierMean
from singer_hf.baselines.cleanups.neighbor_mean import NeighborMean
from singer_hf.baselines.cleanups.shifted_views import ShiftedViews, ShiftedViewsDistiller
from singer_hf.baselines.relational import RelationalDistiller
from singer_hf.distillation.adapter.cleaner import TeacherCleaner
from singer_hf.distillation.feature_distiller import FeatureDistiller
from singer_hf.tuner.gate import GATES

pytestmark = pytest.mark.filterwarnings("ignore:.*exceeds the effective null dimension")
CUDA = torch.device("cuda", 0)
GREY = ((0.5,) * 3, (0.5,) * 3)
every_precision = pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16], ids=str)


@contextmanager
def autocast(precision: torch.dtype | None) -> Iterator[None]:
    """`torch.autocast("cuda", precision)`, which switches itself off where there is no GPU."""
    torch.set_autocast_enabled("cuda", precision is not None)
    torch.set_autocast_dtype("cuda", precision or torch.float16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", torch.float16)


def run_on_cuda(
    module: nn.Module, pixel_values: Tensor, precision: torch.dtype | None = None, waits: Waits | None = None
) -> object:
    """The output of a module whose parameters and buffers are moved to the GPU, with or without autocasting."""
    mode = FakeTensorMode()
    own = {name: mode.from_tensor(t) for name, t in [*module.named_parameters(), *module.named_buffers()]}
    inputs = mode.from_tensor(pixel_values)
    with mode, autocast(precision):
        state, inputs = {name: tensor.to(CUDA) for name, tensor in own.items()}, inputs.to(CUDA)
        with waits or nullcontext():
            return torch.func.functional_call(module, state, (inputs,))


def singer(family: str, gate: str = "none", **settings: object) -> SingerDistiller:
    teacher = get_peft_model(tiny(family), SingerConfig(r=4, gate=gate))
    settings |= {"student_normalization": GREY, "teacher_normalization": ((0.4,) * 3, (0.2,) * 3)}
    return SingerDistiller(tiny("deit", seed=1), teacher, image_size=(32, 32), **settings)


def other_grids() -> SingerDistiller:
    """The teacher's patches are half as large: its images and the student's tokens are resized."""
    teacher = get_peft_model(tiny_vit(patch_size=4), SingerConfig(r=4))
    return SingerDistiller(tiny_vit(), teacher, image_size=(32, 32))


def refined_by(refiner: object) -> FeatureDistiller:
    return FeatureDistiller(tiny_vit(), tiny_vit(), refiners=refiner, image_size=(32, 32))


def cleaner() -> TeacherCleaner:
    return TeacherCleaner(get_peft_model(tiny("vit"), SingerConfig(r=4, gate="outlier")))


DISTILLERS: dict[str, Callable[[], FeatureDistiller]] = {
    "vit": lambda: singer("vit"),
    "dinov2_registers": lambda: singer("dinov2_registers"),
    "siglip": lambda: singer("siglip"),
    "with statistics": lambda: singer("vit", "outlier", target_norm="channel", outlier_loss="neighbors").train(),
    "share": lambda: singer("vit", info_share=0.5).train(),
    "relative": lambda: singer("vit", "outlier", outlier_loss="relative"),
    "other grids": other_grids,
    "FitNet": lambda: FeatureDistiller(tiny_vit(), tiny_vit(), image_size=(32, 32)),
    "clip_norm": lambda: refined_by(ClipNorm(1, quantile=0.9)),
    "neighbor": lambda: refined_by(NeighborMean(1, (4, 4), quantile=0.9)),
    "local_outlier_factor": lambda: refined_by(LocalOutlierMean(1, (4, 4))),
    "shifted_views": lambda: ShiftedViewsDistiller(
        tiny_vit(), tiny_vit(), ShiftedViews(num_views=3), image_size=(32, 32)
    ),
    "relational": lambda: RelationalDistiller(tiny_vit(), tiny_vit(), image_size=(32, 32)),
}


@pytest.mark.parametrize("name", DISTILLERS)
@every_precision
def test_a_distillers_forward_pass_stays_on_the_gpu(name, precision):
    losses = run_on_cuda(DISTILLERS[name](), images(), precision)
    for value in losses.values():
        assert value.device == CUDA
        assert value.dtype == torch.float32
        assert value.shape == ()
    assert losses.loss.requires_grad


@pytest.mark.parametrize("name", [*DISTILLERS, "cleaner"])
def test_a_step_waits_for_no_result_and_no_copy(name):
    waits, module = Waits(), DISTILLERS[name]() if name in DISTILLERS else cleaner()
    run_on_cuda(module.train(), images(), waits=waits)
    assert waits.found == []


class _Waiting(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[tokens.sum(dim=1) > 0]


class _Copying(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * torch.tensor([1.0, 2.0], device=tokens.device)


def test_the_counter_sees_a_mask_and_a_copy():
    waits = Waits()
    run_on_cuda(_Copying(), torch.ones(3, 2), waits=waits)
    assert [line.split()[0] for line in waits.found] == ["_to_copy"]
    with waits:
        _Waiting()(torch.ones(3, 2))
    assert {line.split()[0] for line in waits.found[1:]} & {"index", "nonzero"}


@every_precision
@pytest.mark.parametrize("teacher_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gate", GATES)
def test_an_adapters_layer_keeps_device_and_type_of_its_tokens(precision, teacher_dtype, gate):
    teacher = get_peft_model(tiny_vit().to(teacher_dtype), SingerConfig(r=4, gate=gate)).base_model.model
    output = run_on_cuda(teacher, images().to(teacher_dtype), precision).last_hidden_state
    assert output.device == CUDA
    assert output.shape == (2, 17, 32)
    assert precision is not None or output.dtype == teacher_dtype
    layer = teacher.layers[3]
    tokens = run_on_cuda(_Refine(layer), torch.randn(2, 17, 32, dtype=teacher_dtype), precision)
    assert (tokens.device, tokens.dtype, tokens.shape) == (CUDA, teacher_dtype, (2, 17, 32))


class _Refine(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer.refine(tokens)


@every_precision
def test_the_precision_is_that_of_autocasting(precision):
    output = run_on_cuda(nn.Linear(2, 2), torch.zeros(1, 2), precision)
    assert (output.device, output.dtype) == (CUDA, precision or torch.float32)


def test_a_tensor_left_on_the_cpu_is_noticed():
    distiller = singer("vit")
    scale = distiller.teacher_input.scale
    del distiller.teacher_input._buffers["scale"]
    distiller.teacher_input.scale = scale
    with pytest.raises((RuntimeError, AssertionError), match=r"device|FakeTensor"):
        run_on_cuda(distiller, images(), None)
