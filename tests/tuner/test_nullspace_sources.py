"""The three null-space sources and the leakage into the next block, on tiny models of every family."""

import weakref

import pytest
import torch
import zoo
from torch import Tensor, nn
from zoo import every_family

from singer_hf.tuner.nullspace import Spectrum, random_basis
from singer_hf.tuner.nullspace_sources import (
    NULLSPACE_SOURCES,
    linearized_mlp,
    next_block_leakage,
    record_block_calls,
    source_gram,
)
from singer_hf.vit.features import FeatureCapture
from singer_hf.vit.structure import view_vit
from singer_hf.vit.view import ViTView

D, LAYER, NEXT = zoo.HIDDEN, 1, 2


def _zero_mean_directions(count: int, channels: int = D, seed: int = 0) -> Tensor:
    """Orthonormal columns (D, count) that sum to zero, within the first ``channels`` channels."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.zeros(D, count)
    raw[:channels] = torch.randn(channels, count, generator=generator)
    raw[:channels] -= raw[:channels].mean(0)
    return torch.linalg.qr(raw).Q


def _without(matrix: Tensor, directions: Tensor) -> Tensor:
    """The rows of a matrix without their part in the span of ``directions`` (D, k)."""
    basis = torch.linalg.qr(directions).Q
    return matrix - (matrix @ basis) @ basis.T


def _leakage(view: ViTView, images: list[Tensor], basis: Tensor, **options: object) -> float:
    return next_block_leakage(view, LAYER, record_block_calls(view, NEXT, images), basis, **options)


@torch.no_grad()
def _ignore(view: ViTView, index: int, directions: Tensor) -> None:
    """Makes every input projection of a block independent of zero-mean ``directions`` of its raw tokens."""
    for projection in view.input_projections(index):
        gain = torch.ones(D) if projection.gain is None else projection.gain
        projection.weight.copy_(_without(projection.weight, gain[:, None] * directions))


@torch.no_grad()
def _remove_from_attention_output(view: ViTView, index: int, directions: Tensor) -> None:
    linears = [m for name, m in view.blocks[index].named_modules() if isinstance(m, nn.Linear) and "att" in name]
    scale = view.layer_scales(index)[0]
    directions = directions if scale is None else scale[:, None] * directions
    linears[-1].weight.copy_(_without(linears[-1].weight.T, directions).T)
    if linears[-1].bias is not None:
        linears[-1].bias.copy_(_without(linears[-1].bias, directions))


@every_family
def test_no_block_depends_on_the_common_null_space_of_its_input_projections(family):
    """The projections are complete: reflecting tokens inside their common null space does not change the update.

    A reflection keeps each token's mean and norm, so the norm layers do not change either (the input of the second one
    includes the attention's output, which therefore must not lie in the subspace).
    """
    view, directions = view_vit(zoo.tiny(family)), _zero_mean_directions(4)
    _ignore(view, NEXT, directions)
    _remove_from_attention_output(view, NEXT, directions)
    for projection in view.input_projections(NEXT):
        assert (projection.matrix() @ directions).abs().max() < 1e-5
    call = next(record_block_calls(view, NEXT, [zoo.images()]))
    tokens = call.hidden_states
    reflected = tokens - 2 * (tokens @ directions) @ directions.T
    other = _zero_mean_directions(4, seed=1)
    elsewhere = tokens - 2 * (tokens @ other) @ other.T
    with torch.no_grad():
        written = call.write(view.blocks[NEXT], tokens)
        torch.testing.assert_close(call.write(view.blocks[NEXT], reflected), written, atol=2e-4, rtol=1e-4)
        assert (call.write(view.blocks[NEXT], elsewhere) - written).norm() > 0.05 * written.norm()


@every_family
@pytest.mark.parametrize("source", NULLSPACE_SOURCES)
def test_every_source_gives_a_gram_matrix_for_every_family(family, source):
    view = view_vit(zoo.tiny(family))
    gram = source_gram(view, LAYER, source, zoo.images())
    assert gram.shape == (D, D)
    assert gram.dtype == torch.float64
    torch.testing.assert_close(gram, gram.T)
    assert torch.linalg.eigvalsh(gram).min() > -1e-6 * gram.diagonal().max()
    assert gram.diagonal().min() > 0


def test_mlp_source_is_the_product_of_the_next_blocks_mlp():
    model = zoo.tiny("vit")
    view = view_vit(model)
    product = model.layers[NEXT].mlp.fc2.weight.double() @ model.layers[NEXT].mlp.fc1.weight.double()
    torch.testing.assert_close(linearized_mlp(view, NEXT).double(), product, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(source_gram(view, LAYER, "mlp"), product.T @ product, atol=1e-4, rtol=1e-5)
    _, _, directions = torch.linalg.svd(product)
    basis = Spectrum.of_gram(source_gram(view, LAYER, "mlp")).smallest(5)
    torch.testing.assert_close(basis @ basis.T, directions[-5:].T @ directions[-5:], atol=1e-4, rtol=0)


def test_block_source_is_the_stack_of_input_projections():
    model = zoo.tiny("vit")
    block = model.layers[NEXT]
    center = torch.eye(D) - torch.full((D, D), 1 / D)
    attention, first, second = block.attention, block.layernorm_before.weight, block.layernorm_after.weight
    stack = [layer.weight * first for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
    stack = torch.cat([*stack, block.mlp.fc1.weight * second]) @ center
    gram = source_gram(view_vit(model), LAYER, "block")
    torch.testing.assert_close(gram, (stack.T @ stack).double(), atol=1e-4, rtol=1e-5)


def test_jacobian_source_is_the_mean_of_exact_jacobians_up_to_probe_noise():
    model, pixel_values = zoo.tiny("vit"), zoo.images(batch=1)
    view = view_vit(model)
    call = next(record_block_calls(view, NEXT, [pixel_values]))
    jacobian = torch.autograd.functional.jacobian(
        lambda tokens: call.write(view.blocks[NEXT], tokens), call.hidden_states
    )
    rows = jacobian.flatten(0, 2).flatten(1, 2).double()
    exact = torch.einsum("oti,otj->ij", rows, rows) / rows.shape[1]
    estimate = source_gram(view, LAYER, "jacobian", [pixel_values] * 100, torch.Generator().manual_seed(0))
    assert (estimate - exact).norm() / exact.norm() < 0.1
    assert float(estimate.trace() / exact.trace()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("source", NULLSPACE_SOURCES)
def test_the_last_block_stands_in_for_its_own_next_block(source):
    view = view_vit(zoo.tiny("vit"))
    grams = [source_gram(view, i, source, zoo.images(), torch.Generator().manual_seed(0)) for i in (2, 3)]
    assert torch.equal(*grams)


@torch.no_grad()
def _vit_with_an_unused_subspace(unused: Tensor) -> ViTView:
    """Block 2 does not depend on ``unused``, whose channels share one gain, and no token has a component in it."""
    model = zoo.tiny("vit")
    block, view = model.layers[NEXT], view_vit(model)
    block.layernorm_before.weight[:16] = 1.3
    block.layernorm_after.weight[:16] = 0.8
    _ignore(view, NEXT, unused)
    for name, parameter in model.named_parameters():
        if name.startswith("embeddings") and "projection.weight" not in name:  # tokens, positions, the patches' bias
            parameter.copy_(_without(parameter, unused))
        elif name.endswith(("o_proj.weight", "fc2.weight", "projection.weight")):
            parameter.copy_(_without(parameter.flatten(1).T, unused).T.reshape(parameter.shape))
        elif name.endswith(("o_proj.bias", "fc2.bias")):
            parameter.copy_(_without(parameter, unused))
    return view


@pytest.mark.parametrize("source", NULLSPACE_SOURCES)
def test_every_source_finds_the_directions_a_block_was_built_to_ignore(source):
    unused = _zero_mean_directions(4, channels=16)
    view = _vit_with_an_unused_subspace(unused)
    spectrum = Spectrum.of_gram(source_gram(view, LAYER, source, [zoo.images(seed=i) for i in range(4)]))
    # After a LayerNorm the mean of the channels has no effect either; the MLP's product ignores the LayerNorm.
    found = 4 if source == "mlp" else 5
    basis = spectrum.smallest(found).float()
    assert (basis.T @ unused).square().sum() == pytest.approx(4.0, abs=1e-3)
    assert spectrum.effective_null_dimension(1e-3) == found
    if source != "mlp":
        assert (basis.T @ torch.full((D,), D**-0.5)).square().sum() == pytest.approx(1.0, abs=1e-3)
    leaked = _leakage(view, [zoo.images()], unused, relative_size=1e-3)
    largest = _leakage(view, [zoo.images()], spectrum.largest(4).float(), relative_size=1e-3)
    assert leaked < 0.01 * largest


def test_counting_attention_leaks_less_than_the_mlp_alone_and_that_less_than_random():
    """Attention uses a subspace that the MLP ignores; a second subspace is used by both, but weakly."""
    model = zoo.tiny("vit")
    view, block = view_vit(model), model.layers[NEXT]
    directions = _zero_mean_directions(8)
    strong, weak = directions[:, :4], directions[:, 4:]
    with torch.no_grad():
        for projection in view.input_projections(NEXT):
            projection.gain.fill_(1.0)
            projection.weight.copy_(_without(projection.weight, weak) + 0.1 * (projection.weight @ weak) @ weak.T)
        block.mlp.fc1.weight.copy_(_without(block.mlp.fc1.weight, strong))
    batches = [zoo.images(seed=seed) for seed in range(3)]
    bases = {name: Spectrum.of_gram(source_gram(view, LAYER, name)).smallest(4) for name in ("mlp", "block")}
    bases["random"] = random_basis(D, 4, torch.Generator().manual_seed(1))
    leaked = {
        name: _leakage(view, batches, basis.float(), generator=torch.Generator().manual_seed(2))
        for name, basis in bases.items()
    }
    assert (bases["mlp"].float().T @ strong).square().sum() == pytest.approx(4.0, abs=1e-3)
    assert leaked["block"] < 0.8 * leaked["mlp"]
    assert leaked["mlp"] < 0.9 * leaked["random"]


def test_leakage_runs_the_next_block_and_moves_patch_tokens_only():
    model = zoo.tiny("dinov2_registers")
    view, seen = view_vit(model), []
    for index, block in enumerate(view.blocks):
        block.register_forward_pre_hook(lambda m, args, index=index: seen.append((index, args[0])))
    _leakage(view, [zoo.images()], random_basis(D, 4))
    tokens = [value for index, value in seen if index == NEXT]
    assert [index for index, _ in seen] == [0, 1, 2, 2, 2]  # one pass up to the next block, then two of it alone
    assert torch.equal(tokens[1][:, :5], tokens[2][:, :5])
    assert (tokens[1][:, 5:] != tokens[2][:, 5:]).any(-1).all()


def test_calibration_holds_one_batch_at_a_time():
    alive = []

    def batches():
        for seed in range(6):
            batch = zoo.images(seed=seed)
            alive.append(weakref.ref(batch))
            assert sum(reference() is not None for reference in alive) <= 2
            yield batch

    source_gram(view_vit(zoo.tiny("vit")), LAYER, "jacobian", batches())
    assert len(alive) == 6


def test_calibration_leaves_neither_hooks_nor_gradients():
    model = zoo.tiny("vit")
    source_gram(view_vit(model), LAYER, "jacobian", zoo.images())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_calibration_images_take_the_models_dtype():
    view = view_vit(zoo.tiny("vit").to(torch.bfloat16))
    gram = source_gram(view, LAYER, "jacobian", zoo.images())
    assert gram.dtype == torch.float64
    assert gram.isfinite().all()


def test_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match="nullspace_source") as error:
        source_gram(view_vit(zoo.tiny("vit")), LAYER, "attention")
    assert str(error.value) == "`nullspace_source` must be one of ('mlp', 'block', 'jacobian'), got 'attention'"


@pytest.mark.parametrize("nothing", [None, []])
def test_jacobian_without_images_says_what_to_pass(nothing):
    with pytest.raises(ValueError, match="calibration images") as error:
        source_gram(view_vit(zoo.tiny("vit")), LAYER, "jacobian", nothing)
    assert str(error.value) == (
        '`nullspace_source="jacobian"` needs calibration images: pass `calibration_images=` to SingerConfig, batches '
        "of pixel values (B, 3, H, W) normalised for the teacher"
    )


def test_leakage_without_calls_is_refused():
    with pytest.raises(ValueError, match="calls") as error:
        _leakage(view_vit(zoo.tiny("vit")), [], random_basis(D, 2))
    assert str(error.value) == "`calls` must hold at least one call, got none"


def test_block_calls_are_those_of_a_capture():
    view = view_vit(zoo.tiny("dinov3"))
    call = next(record_block_calls(view, NEXT, [zoo.images()]))
    capture = FeatureCapture(view, (LAYER,))
    with torch.no_grad():
        assert torch.equal(capture(zoo.images()).outputs[LAYER], call.hidden_states)
