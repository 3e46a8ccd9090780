"""Artifacts against their ordinary neighbours: the loss term, and what counts in L_info then."""

import pytest
import torch
from distillers import make
from torch import Tensor
from zoo import images, tiny_vit

from singer_hf.artifacts.gram import gram_matrix
from singer_hf.artifacts.outliers import OutlierRule, token_norms
from singer_hf.distillation.adapter.objective import artifacts
from singer_hf.distillation.losses import info_loss, length_unit, neighbor_loss

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


def mask(*artifacts: int) -> Tensor:
    return torch.zeros(1, 4, dtype=torch.bool).index_fill(1, torch.tensor(artifacts, dtype=torch.long), True)


def four(*values: float) -> Tensor:
    """Tokens (1, 4, 2) along (0.6, 0.8) on a grid of 1 x 4."""
    return torch.tensor(values).view(1, 4, 1) * torch.tensor([0.6, 0.8])


def test_the_loss_is_the_mean_squared_distance_of_artifacts_to_their_neighbours_in_units():
    # Means of ordinary neighbours: 1 for the second token, 3 for the third; distances 4 and 5, in units of 2. The two
    # ordinary tokens count 0.
    raw, refined = four(1, 50, 70, 3), four(9, 5, -2, 9)
    loss = neighbor_loss(refined, raw, mask(1, 2), (1, 4), torch.tensor([[2.0]]))
    assert loss.item() == pytest.approx(((4 / 2) ** 2 + (5 / 2) ** 2) / 4)


def test_only_refined_artifacts_have_a_gradient():
    raw, refined = four(1, 50, 70, 3).requires_grad_(), four(9, 5, -2, 9).requires_grad_()
    neighbor_loss(refined, raw, mask(1, 2), (1, 4), length_unit(raw)).backward()
    assert raw.grad is None
    assert refined.grad[0].any(dim=-1).tolist() == [False, True, True, False]


@pytest.mark.parametrize("artifacts", [(), (0, 1, 2, 3)], ids=["none", "no ordinary neighbours"])
def test_without_artifacts_or_neighbours_loss_and_gradient_are_0(artifacts):
    refined = four(9, 5, -2, 9).requires_grad_()
    loss = neighbor_loss(refined, four(1, 50, 70, 3), mask(*artifacts), (1, 4), torch.tensor([[2.0]]))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(refined.grad, torch.zeros_like(refined))


def test_half_precision_tokens_are_computed_in_float32():
    raw, refined = (200 * torch.randn(2, 2, 4, 8, generator=torch.Generator().manual_seed(0))).half().unbind()
    values = [neighbor_loss(a, b, mask(1).expand(2, 4), (2, 2), length_unit(b)) for a, b in ((refined, raw),)]
    values += [neighbor_loss(refined.float(), raw.float(), mask(1).expand(2, 4), (2, 2), length_unit(raw))]
    assert values[0].dtype == torch.float32
    assert torch.equal(*values)


def test_the_loss_makes_one_graph_and_needs_no_values():
    def loss(refined: Tensor, raw: Tensor, artifacts: Tensor) -> Tensor:
        kept = info_loss(refined, raw, kept=~artifacts)
        return kept + neighbor_loss(refined, raw, artifacts, (1, 4), length_unit(raw))

    arguments = four(9, 5, -2, 9), four(1, 50, 70, 3), mask(1, 2)
    torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="eager")(*arguments), loss(*arguments))
    assert loss(*(tensor.to("meta") for tensor in arguments)).shape == ()


def test_similarities_of_pairs_that_are_not_kept_count_0():
    refined = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [1.0, 0.0]]])
    raw = torch.tensor([[[1.0, 0.0], [0.0, 3.0], [-2.0, 0.0]]])
    # Cosines of the pairs 01, 02, 12: 1, 1, 1 and 0, -1, 0; each pair counts twice among nine entries.
    assert info_loss(refined, raw).item() == pytest.approx(2 * (1 + 4 + 1) / 9)
    kept = torch.tensor([[True, False, True]])
    assert info_loss(refined, raw, kept=kept).item() == pytest.approx(2 * 4 / 9)
    assert torch.equal(info_loss(refined, raw, kept=torch.ones_like(kept)), info_loss(refined, raw))
    assert info_loss(refined, raw, kept=torch.zeros_like(kept)) == 0


def long_teacher():
    """A ViT with four long artifacts in every image behind each block: at their places the embedding is long."""
    teacher = tiny_vit()
    teacher.embeddings.position_embeddings.data[:, [2, 7, 11, 12]] *= 60
    return teacher


def gated(**settings: object):
    distiller = make(teacher=long_teacher(), config={"gate": "outlier", "init_weights": "random"}, **settings)
    distiller(images())  # the gates see a batch
    return distiller


def test_with_a_gate_the_distiller_refines_artifacts_and_keeps_the_pairs_of_the_others():
    distiller = gated(outlier_loss="neighbors").eval()
    output, raw = distiller(images()), distiller.teacher_features(images())
    refined = distiller.refine(raw.outputs)
    outlier, info = [], []
    for block in (1, 3):
        patches, clean = raw.outputs[block][:, 1:], refined[block][:, 1:]
        artifacts = distiller.singer_layers[block].gate_shares(patches) > 0
        assert artifacts.any(dim=1).all()
        assert not artifacts.all()
        assert torch.equal(artifacts, (patches != clean).any(dim=-1))
        unit = patches.norm(dim=-1).sort(dim=1).values[:, 7:9].mean(dim=1, keepdim=True)
        outlier.append(neighbor_loss(clean, patches, artifacts, (4, 4), unit))
        behind = (refined[3], raw.outputs[3])
        if block == 1:
            behind = distiller.replay_next(1, refined[1], raw), raw.outputs[2]
        difference = gram_matrix(behind[0][:, 1:]) - gram_matrix(behind[1][:, 1:])
        ordinary = (~artifacts).float()
        info.append((difference * ordinary.unsqueeze(1) * ordinary.unsqueeze(2)).square().mean())
    torch.testing.assert_close(output.outlier_loss, sum(outlier) / 2)
    torch.testing.assert_close(output.info_loss, sum(info) / 2)
    assert info[0] > 0
    assert info[1] == 0  # no block follows the last one: its ordinary patches are those of the teacher


@pytest.mark.parametrize("gate", ["none", "outlier"])
def test_artifacts_of_an_image_do_not_depend_on_its_batch(gate):
    distiller = gated() if gate == "outlier" else make(teacher=long_teacher())
    patches = torch.cat([torch.randn(1, 16, 32), 10 * torch.randn(1, 16, 32)])
    patches[:, 5] *= 50
    layer = distiller.singer_layers[1]
    together = artifacts(layer, patches)
    assert torch.equal(together, torch.cat([artifacts(layer, image[None]) for image in patches]))
    if gate == "none":
        assert torch.equal(together, OutlierRule().mask(token_norms(patches)))
        assert together.sum(dim=1).tolist() == [1, 1]


@pytest.mark.parametrize("gate", ["none", "outlier"])
def test_the_neighbours_train_the_adapter(gate):
    config = {"gate": gate, "init_weights": "random"}
    distiller = make(teacher=long_teacher(), config=config, outlier_loss="neighbors")
    optimizer = torch.optim.Adam([p for layer in distiller.singer_layers.values() for p in layer.adapter_parameters()])
    losses = []
    for _ in range(20):
        losses.append(distiller(images()).outlier_loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
