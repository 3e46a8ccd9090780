"""Cleaning of a teacher without a student, from Python."""

import json

import pytest
import torch
from cleanings import NUM_IMAGES, clean_planted, lasting_vit, noise_dataset, planted_processor, saved_teacher
from peft import LoraConfig, PeftModel, get_peft_model
from planted import PLANTED, expected_tokens, planted_images
from runs import differing, files_in, snapshot
from transformers import AutoModel, ViTForImageClassification
from zoo import tiny_vit

import singer_hf
from singer_hf import SingerConfig
from singer_hf.inspection.measure.audit import audit
from singer_hf.vit.features import capture_features

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cleaning with everything that it writes."""
    folder = tmp_path_factory.mktemp("cleaning")
    saved_teacher(folder / "teacher")
    clean_planted(str(folder / "teacher"), output_dir=str(folder / "cleaned"), save_steps=50)
    return folder


@pytest.fixture(scope="module")
def cleaned(folder):
    return PeftModel.from_pretrained(AutoModel.from_pretrained(folder / "teacher"), folder / "cleaned").eval()


@pytest.fixture(scope="module")
def tokens(cleaned):
    """Patch tokens (2, 24, 32) after the last block."""
    with torch.no_grad():
        return capture_features(cleaned, planted_images(2), [3])[3][:, 1:]


def test_the_blocks_behind_the_adapter_have_no_outliers(cleaned):
    after = audit(cleaned, [planted_images(4)], inline=True, progress=False)
    before = audit(lasting_vit(), [planted_images(4)], progress=False)
    assert [round(block.outlier_share, 3) for block in before.blocks] == [0.0, 0.125, 0.125, 0.125]
    assert [block.outlier_share for block in after.blocks] == [0, 0, 0, 0]
    assert max(block.p99_over_median for block in after.blocks[1:]) < 2


def test_planted_tokens_come_to_their_neighbours(tokens):
    """All ordinary patches are 3 along channel 0, so that is the mean of any neighbours."""
    expected = expected_tokens(0)[5].float()
    distance = (tokens[:, list(PLANTED)] - expected).norm(dim=-1)
    assert distance.max() < 0.5


def test_ordinary_tokens_stay_bit_for_bit(tokens):
    with torch.no_grad():
        raw = capture_features(lasting_vit(), planted_images(2), [3])[3][:, 1:]
    ordinary = [place for place in range(24) if place not in PLANTED]
    assert torch.equal(tokens[:, ordinary], raw[:, ordinary])


def test_only_the_adapter_is_trained():
    teacher = lasting_vit()
    before = snapshot(teacher)
    cleaned = clean_planted(teacher, max_steps=2)
    changed = {name: value for name, value in cleaned.base_model.model.state_dict().items() if "singer_" not in name}
    assert {name.replace(".base_layer", "") for name in changed} == set(before)
    assert all(torch.equal(value, before[name.replace(".base_layer", "")]) for name, value in changed.items())
    assert not any(parameter.requires_grad for parameter in cleaned.parameters())
    assert not cleaned.training
    layer = cleaned.base_model.singer_layers[1]
    assert layer.singer_up["default"].weight.any()


def test_a_dry_run_ends_after_ten_steps_and_writes_nothing(capsys, tmp_path):
    clean_planted(dry_run=True, output_dir=str(tmp_path / "cleaned"))
    printed = capsys.readouterr().out
    assert "Outlook after 8 timed steps of 8 images" in printed
    assert "Dry run: the adapter was not trained to the end, and nothing was saved." in printed
    assert not [path for path in (tmp_path / "cleaned").rglob("*") if path.is_file()]


def test_a_teacher_without_artifacts_stays_bit_for_bit(capsys, tmp_path):
    pixel_values = planted_images(2)
    expected = tiny_vit(image_size=(32, 48))(pixel_values).last_hidden_state
    cleaned = clean_planted(tiny_vit(image_size=(32, 48)), output_dir=str(tmp_path / "cleaned"))
    assert torch.equal(cleaned(pixel_values).last_hidden_state, expected)
    assert "There is nothing to clean: the teacher stays as it is." in capsys.readouterr().out
    assert not (tmp_path / "cleaned").exists()


def test_the_steps_are_said(capsys):
    clean_planted()
    said = capsys.readouterr().out.splitlines()
    assert [*said[:2], said[-1]] == [
        "ViTModel: outliers begin after block 1: 12 % of the patches, with a mean norm of 13.4 times the median of "
        "their image.",
        "Adapters behind block 1, so that no later block reads outliers.",
        "Cleaned: after the last block, outliers 12 % -> 0 % of the patches, 99 % quantile over median 13.37 -> 1.01.",
    ]


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    clean_planted(max_steps=1)
    assert list(tmp_path.iterdir()) == []


def test_the_adapter_lands_with_card_page_and_checkpoints(folder):
    files = files_in(folder / "cleaned")
    own = {name for name in files if not name.startswith(("checkpoint-", "figures/"))}
    assert own == {
        *("README.md", "adapter_config.json", "adapter_model.safetensors", "audit.json", "before_after.png"),
        *("preprocessor_config.json", "report.html", "training_args.json"),
    }
    assert {name.split("/")[0] for name in files if name.startswith("checkpoint-")} == {
        "checkpoint-50",
        "checkpoint-100",
    }
    assert json.loads((folder / "cleaned/adapter_config.json").read_text())["layers_to_transform"] == [1]
    assert str(folder) not in (folder / "cleaned/adapter_config.json").read_text()
    names = [model["name"] for model in json.loads((folder / "cleaned/audit.json").read_text())["models"]]
    assert names == ["teacher", "teacher, cleaned"]


def test_the_card_says_what_was_cleaned_and_how_to_load_it(folder):
    card = (folder / "cleaned/README.md").read_text()
    assert "library_name: peft" in card
    assert "import singer_hf  # without it PEFT raises KeyError: 'SINGER'" in card
    assert "outliers begin after block 1: 12 % of the patches" in card
    assert "| 3 | 12 % | 0 % | 13.37 | 1.01 |" in card
    assert "![Norms and principal components before and after](before_after.png)" in card
    assert "100 steps of 8 images each, `outlier_loss` neighbors (weight 1)" in card
    assert str(folder) not in card


def test_the_card_names_a_folder_of_images_without_its_path(tmp_path):
    (tmp_path / "private/photos").mkdir(parents=True)
    for number, row in enumerate(noise_dataset()):
        row["image"].save(tmp_path / f"private/photos/{number}.png")
    clean_planted(images=str(tmp_path / "private/photos"), output_dir=str(tmp_path / "cleaned"), max_steps=1)
    card = (tmp_path / "cleaned/README.md").read_text()
    assert "estimated on the training images of `photos`: audit" in card
    assert "--adapter_name_or_path ADAPTER --inline" in card
    assert "private" not in card


def test_a_hub_teacher_is_the_base_model_of_the_card(tmp_path):
    teacher = lasting_vit()
    teacher.name_or_path = teacher.config.name_or_path = "someone/teacher"
    clean_planted(teacher, output_dir=str(tmp_path), max_steps=1)
    card = (tmp_path / "README.md").read_text()
    assert "base_model: someone/teacher\n" in card
    assert "base_model_relation: adapter\n" in card


def test_the_adapter_fits_the_same_teacher_with_a_head(folder, cleaned):
    headed = ViTForImageClassification.from_pretrained(folder / "teacher", num_labels=2)
    peft_model = PeftModel.from_pretrained(headed, folder / "cleaned").eval()
    with torch.no_grad():
        found, expected = (capture_features(model, planted_images(2), [3])[3] for model in (peft_model, cleaned))
    assert torch.equal(found, expected)


def test_the_configuration_and_the_arguments_are_used(tmp_path):
    config = SingerConfig(r=2, layers_to_transform=[1, 2], init_weights="random")
    cleaned = clean_planted(config=config, max_steps=3, output_dir=str(tmp_path), logging_steps=1)
    layers = cleaned.base_model.singer_layers
    assert {i: layer.singer_down["default"].out_features for i, layer in layers.items()} == {1: 2, 2: 2}
    assert json.loads((tmp_path / "training_args.json").read_text())["max_steps"] == 3


def test_the_same_seed_gives_the_same_adapter():
    first, second = (clean_planted(max_steps=5, seed=3) for _ in range(2))
    assert differing(snapshot(first), snapshot(second)) == set()


def refused(message, **options):
    with pytest.raises(ValueError, match=message):
        clean_planted(**options)


def test_a_teacher_with_adapters_is_refused():
    own = get_peft_model(lasting_vit(), SingerConfig(layers_to_transform=[1]))
    refused("the teacher is a PeftModel already", teacher=own)
    refused(
        r"`teacher` must have no adapter yet, it has SiNGER adapters behind the blocks \[1\]; pass the plain teacher",
        teacher=own.base_model.model,
    )
    lora = get_peft_model(lasting_vit(), LoraConfig(target_modules=r".*(fc1|intermediate\.dense)"))
    refused("the teacher must have no other adapters inside, it has 4", teacher=lora)


def test_too_few_images_are_refused():
    refused(
        "`images` must hold at least 167 images of 24 patches \\(4,000 patches\\) to estimate which norms are "
        "outliers, got 20; give more images",
        images=noise_dataset(20),
    )


def test_images_of_another_size_are_refused():
    processor = planted_processor()
    processor.size = {"height": 20, "width": 20}
    refused("`image_size` must suit the model 'ViTModel'", processor=processor)


def test_images_need_a_processor():
    refused("`processor` must be given for a dataset of images", processor=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_audit_images": 0}, "`num_audit_images` must be at least 1, got 0"),
        ({"outlier_weight": 0.0}, "`outlier_weight` must be greater than 0, or the adapter is not trained, got 0"),
        ({"info_weight": -1.0}, "`info_weight` must be at least 0, got -1.0"),
        ({"push_to_hub": True}, "`push_to_hub` needs an `output_dir`; name the folder of the adapter"),
    ],
)
def test_wrong_values_are_refused_before_any_work(options, message):
    refused(message, **options)


def test_an_earlier_cleaning_is_not_overwritten(folder):
    refused("`output_dir` must not hold another run", teacher=lasting_vit(), output_dir=str(folder / "cleaned"))


def test_settings_go_either_into_arguments_or_into_the_call(tmp_path):
    from singer_hf.training.adapter.arguments import CleaningArguments

    args = CleaningArguments(output_dir=str(tmp_path), report_to="none")
    refused(
        "`args` must be left out if its fields are given one by one, got \\['max_steps'\\]", args=args, max_steps=2
    )


def test_the_public_name_is_the_function():
    from singer_hf.cleaning.clean import clean

    assert singer_hf.clean is clean
    assert NUM_IMAGES * 24 >= 4_000
