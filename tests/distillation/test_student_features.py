"""What is read off a student: class and patch tokens of transformers, feature maps of everything else."""

import pytest
import torch
import transformers as hf
from zoo import FAMILIES, SIZES, images, tiny, tiny_vit

from singer_hf.distillation.student_features import FeatureMapExtractor, TransformerExtractor, make_student_extractor
from singer_hf.vit.features import capture_features
from singer_hf.vit.structure import view_vit

RESNET = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
CONVNEXT = hf.ConvNextConfig(depths=[1, 1], hidden_sizes=[8, 16], num_stages=2)
SWIN = hf.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[2, 2], image_size=32, patch_size=4, window_size=4)


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2_registers", "dinov3", "siglip", "beit", "timm_dinov2"])
def test_a_transformers_class_and_patch_tokens_are_read_without_its_registers(family):
    model, pixel_values = tiny(family), images()
    extractor = make_student_extractor(model, None)
    assert isinstance(extractor, TransformerExtractor)
    view = view_vit(model)
    extractor.select([1, 3])
    tokens = extractor(pixel_values)
    registers = FAMILIES[family].prefix - extractor.num_class_tokens
    expected = capture_features(model, pixel_values, [1, 3])
    for block in (1, 3):
        kept = [
            i for i in range(expected[block].shape[1]) if not extractor.num_class_tokens <= i < view.num_prefix_tokens
        ]
        assert torch.equal(tokens[block], expected[block][:, kept])
        assert tokens[block].shape == (2, FAMILIES[family].prefix - registers + 16, 32)


@pytest.mark.parametrize(("family", "expected"), [("siglip", 0), ("vit", 1), ("deit", 2), ("dinov2_registers", 1)])
def test_class_and_distillation_tokens_are_counted(family, expected):
    assert make_student_extractor(tiny(family), None).num_class_tokens == expected


def test_a_transformer_says_its_size_grid_and_widths():
    extractor = make_student_extractor(tiny_vit(num_blocks=3, image_size=48), None)
    assert extractor.image_size == (48, 48)
    assert extractor.num_blocks == 3
    assert extractor.widths == [32, 32, 32]
    assert extractor.grid(0, (48, 32)) == (6, 4)


def test_nothing_behind_the_last_selected_block_is_computed():
    model = tiny_vit()
    extractor = make_student_extractor(model, None)
    calls = []
    for name, module in (("block 3", model.layers[3]), ("norm", model.layernorm)):
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    extractor.select([0, 2])
    extractor(images())
    assert calls == []


@pytest.mark.parametrize("model", [hf.ResNetModel(RESNET), hf.ConvNextModel(CONVNEXT)], ids=["resnet", "convnext"])
def test_a_convolutional_networks_feature_maps_are_read_row_by_row(model):
    pixel_values = images(64, 96)
    extractor = make_student_extractor(model, (64, 96))
    assert isinstance(extractor, FeatureMapExtractor)
    model.eval()
    with torch.no_grad():
        maps = model(pixel_values, output_hidden_states=True).hidden_states
        extractor.select([1, 2])
        tokens = extractor(pixel_values)
    assert extractor.num_blocks == len(maps) == 3
    assert extractor.num_class_tokens == 0
    assert extractor.widths == [8, 8, 16]
    for i in (1, 2):
        rows, columns = extractor.grid(i, (64, 96))
        assert (rows, columns) == maps[i].shape[-2:]
        for row, column in ((0, 0), (rows - 1, 1), (1, columns - 1)):
            assert torch.equal(tokens[i][:, row * columns + column], maps[i][:, :, row, column])


def test_a_timm_cnn_is_a_student():
    pytest.importorskip("timm")
    model = hf.TimmWrapperModel(hf.TimmWrapperConfig(architecture="resnet10t"))
    extractor = make_student_extractor(model, (64, 64))
    assert isinstance(extractor, FeatureMapExtractor)
    assert [extractor.grid(i, (64, 64)) for i in range(extractor.num_blocks)] == [
        (32, 32),
        (16, 16),
        (8, 8),
        (4, 4),
        (2, 2),
    ]


def test_swin_is_read_as_feature_maps():
    extractor = make_student_extractor(hf.SwinModel(SWIN, add_pooling_layer=False), (32, 32))
    assert isinstance(extractor, FeatureMapExtractor)
    assert extractor.grid(0, (32, 32)) == (8, 8)


def test_asking_a_cnn_for_its_shapes_leaves_it_as_it_was():
    model = hf.ResNetModel(RESNET).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make_student_extractor(model, (64, 64))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: torch.nn.Linear(3, 3), "Linear"),
        (
            lambda: hf.BertModel(
                hf.BertConfig(
                    **{key: SIZES[key] for key in ("hidden_size", "num_attention_heads", "intermediate_size")},
                    num_hidden_layers=2,
                    vocab_size=50,
                )
            ),
            "BertModel",
        ),
    ],
    ids=["layer", "text"],
)
def test_what_is_no_vision_model_is_refused(build, name):
    message = (
        r"^`student` must be a vision transformer or return feature maps \(B, C, rows, columns\) as `hidden_states`, "
        rf"got {name}\. As a transformer: {name} is not supported: .+ As a feature-map model: .+"
    )
    with pytest.raises(ValueError, match=message):
        make_student_extractor(build(), (32, 32))


def test_a_transformer_whose_hidden_states_are_tokens_only_is_refused():
    """A text-like sequence of patches without a known grid cannot be laid out."""
    model = hf.Siglip2VisionModel(
        hf.Siglip2VisionConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    )
    with pytest.raises(ValueError, match=r"^`student` must be a vision transformer or return feature maps"):
        make_student_extractor(model, (32, 32))
