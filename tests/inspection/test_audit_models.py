"""`singer_hf.audit`: any models, any images, one report."""

import importlib.util
from functools import partial

import pytest
import torch
from datasets import Dataset
from planted import IMAGE, planted_adapter, planted_images, planted_vit
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import ViTImageProcessor
from zoo import tiny_vit

pytest.importorskip("matplotlib")

import singer_hf
from singer_hf.cards.student_card import CardInfo, student_card
from singer_hf.data.drawn_scenes import scene_dataset
from singer_hf.inspection.audit_report import AuditReport
from singer_hf.inspection.measure.audit import audit as measure
from singer_hf.inspection.measure.audit_result import AuditResult
from singer_hf.inspection.measure.snapshots import take_snapshot

audit = partial(singer_hf.audit, progress=False)


@pytest.fixture(scope="module")
def processor():
    size = {"height": IMAGE[0], "width": IMAGE[1]}
    return ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, processor):
    """A teacher, and a student whose projectors were trained with a wider teacher."""
    folder = tmp_path_factory.mktemp("models")
    models = {"teacher": planted_vit(), "student": tiny_vit(2, hidden_size=16, image_size=IMAGE, patch_size=16)}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    (folder / "student" / "projectors").mkdir()
    save_file(nn.ModuleDict({"3": nn.Linear(16, 99)}).state_dict(), folder / "student/projectors/model.safetensors")
    return folder


@pytest.fixture(scope="module")
def report(folder):
    return audit([folder / "teacher", folder / "student"], scene_dataset(6), num_pictures=2)


def test_a_module_on_pixel_values_gives_what_the_measurement_gives():
    pixels = planted_images(5)
    (result,) = audit(planted_vit(), pixels, batch_size=2).results
    assert result == measure(planted_vit(), pixels, progress=False)


@pytest.mark.parametrize("form", ["tensor", "batches", "dicts", "loader", "generator", "rows"])
def test_pixel_values_come_in_any_form(form):
    pixels = planted_images(4)
    rows = [{"pixel_values": image} for image in pixels]
    forms = {"tensor": pixels, "batches": pixels.split(3), "dicts": [{"pixel_values": pixels}], "rows": rows}
    forms |= {"loader": DataLoader(rows, 3), "generator": (part for part in pixels.split(1))}
    report = audit(planted_vit(), forms[form], max_samples=3)
    assert report.results == audit(planted_vit(), pixels[:3]).results
    assert report.source == "the given images"


@pytest.mark.parametrize("form", ["dataset", "pictures", "folder"])
def test_images_come_in_any_form(form, processor, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    images = scene_dataset(4)
    pictures = [row["image"] for row in images]
    (tmp_path / "photos").mkdir()
    for index, picture in enumerate(pictures):
        picture.save(tmp_path / "photos" / f"{index}.png")
    given = {"dataset": images, "pictures": pictures, "folder": tmp_path / "photos"}[form]
    (result,) = audit(planted_vit(), given, processor=processor).results
    assert (result.num_images, result.image_size) == (4, IMAGE)
    assert [block.outlier_share for block in result.blocks] == pytest.approx([0, 3 / 24, 2 / 24, 2 / 24])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "`images` must be PIL images, .* or a folder or Hub id, got NoneType"),
        ([], "`images` must hold at least one image, got none"),
        (["photo.png"], "`images` must hold PIL images or pixel values .* got str at position 0; yield"),
        ([torch.ones(2, 3)], r"`images` must hold batches of pixel values .* got shape \(2, 3\)"),
        (Dataset.from_dict({"label": [1]}), "`dataset` must have a column of images"),
    ],
)
def test_other_images_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        audit(planted_vit(), images)


def test_other_models_and_options_are_refused(folder):
    with pytest.raises(ValueError, match="`model` must be at least one model, got none"):
        audit([], planted_images(1))
    with pytest.raises(ValueError, match=r"`adapter_name_or_path` must be left out for a module, .* got 'run'"):
        audit(planted_vit(), planted_images(1), adapter_name_or_path="run")
    with pytest.raises(ValueError, match="`max_samples` must be at least 1, got 0"):
        audit(planted_vit(), planted_images(1), max_samples=0)
    with pytest.raises(ValueError, match="`image_size` must be left out for pixel values"):
        audit(planted_vit(), planted_images(1), image_size=(32, 32))
    with pytest.raises(ValueError, match=r"`processor` .* must be given: the model 'ViTModel' has no image processor"):
        audit(planted_vit(), scene_dataset(1))


def test_the_model_and_its_mode_stay_as_they_are():
    model = planted_vit().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    audit(model, planted_images(1))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_adapter_is_audited_beside_the_raw_features_or_inline():
    (beside,) = audit(planted_adapter(), planted_images(2)).results
    assert [block.block for block in beside.refined] == [1, 3]
    assert [block["block"] for block in beside.adapter["blocks"]] == [1, 3]
    (inline,) = audit(planted_adapter(), planted_images(2), inline=True).results
    assert (inline.inline, inline.refined, inline.adapter) == (True, [], None)


def test_projectors_that_do_not_fit_cost_a_note_and_no_audit(report):
    assert report.results[1].notes == [
        "projectors of student left out: they lead from width 16 to 99, not 16 to 32; another teacher?"
    ]
    (row,) = (rows[-1] for rows in report.comparisons.values())
    assert "cosine" not in row
    assert "cka" in row


def test_a_model_that_cannot_be_compared_costs_a_note(folder, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("sizes differ")

    monkeypatch.setattr("singer_hf.inspection.run.compare_features", fail)
    report = audit([folder / "teacher", planted_vit()], scene_dataset(2), processor=folder / "teacher")
    assert report.comparisons == {}
    assert report.results[1].notes == ["not compared with teacher: sizes differ"]


def test_students_are_known_by_their_projectors_or_their_card(report, folder, processor, tmp_path):
    assert [result.role for result in report.results] == ["teacher", "student"]
    planted_vit().save_pretrained(tmp_path / "run")
    processor.save_pretrained(tmp_path / "run")
    student_card(CardInfo(student_class="ViTModel")).save(tmp_path / "run" / "README.md")
    (result,) = audit(tmp_path / "run", scene_dataset(1)).results
    assert result.role == "student"


def test_the_pictures_are_those_with_the_longest_tokens_worst_first():
    pixels = torch.cat([planted_images(3), torch.zeros(1, 3, *IMAGE)])
    model = tiny_vit(image_size=IMAGE, patch_size=8)
    report = audit(model, pixels, num_pictures=2)
    (result,) = report.results
    norms = take_snapshot(model, pixels).norms[result.worst_images[0]["block"]]
    ratios = norms.amax(1) / (norms.sort(dim=1).values[:, 11:13].mean(1))
    order = ratios.argsort(descending=True).tolist()
    assert [ranked["image"] for ranked in result.worst_images] == order
    assert [ranked["max_over_median"] for ranked in result.worst_images] == pytest.approx(ratios[order].tolist())
    expected = take_snapshot(model, pixels[order[:2]])
    assert torch.equal(report.snapshots[0].norms, expected.norms)
    caption = next(figure.caption for figure in report.figures if figure.name == "norm_maps")
    assert caption.endswith(
        f"The 2 images are those of 4 whose longest patch token is longest after block "
        f"{result.worst_images[0]['block']} of {result.name}, worst first: {ratios[order[0]]:.1f} and "
        f"{ratios[order[1]]:.1f} times the median of the image."
    )


def test_unreadable_images_do_not_shift_the_pictures(processor):
    pictures = scene_dataset(4)
    broken = [{"bytes": b"no picture", "path": None}]
    rows = [{"bytes": row["bytes"], "path": None} for row in pictures.cast_column("image", _raw())["image"]]
    images = Dataset.from_dict({"image": [rows[0], *broken, *rows[1:]]}).cast_column("image", _raw())
    both = [audit(planted_vit(), given, processor=processor, num_pictures=4) for given in (images, pictures)]
    assert both[0].results[0].worst_images == both[1].results[0].worst_images
    assert torch.equal(both[0].snapshots[0].images, both[1].snapshots[0].images)


def _raw():
    from datasets import Image

    return Image(decode=False)


def test_a_report_saves_what_it_shows_and_loads_the_same(report, tmp_path):
    page = report.save(tmp_path / "out")
    assert page.read_text(encoding="utf-8") == report.page
    assert {f"{figure.name}.png" for figure in report.figures} == {
        file.name for file in (tmp_path / "out/figures").iterdir()
    }
    loaded = AuditReport.load(tmp_path / "out")
    assert loaded == report
    assert loaded.verdicts == report.verdicts
    loaded.save(tmp_path / "again")  # the numbers; the maps were drawn with the features
    assert AuditReport.load(tmp_path / "again") == report


def test_one_audit_of_a_report_loads_by_its_name(report, tmp_path):
    report.save(tmp_path)
    assert AuditResult.load(tmp_path / "audit.json", "student") == report.results[1]
    with pytest.raises(ValueError, match=r"`name` must be one of \['teacher', 'student'\], .* got None"):
        AuditResult.load(tmp_path)
    AuditReport(report.results[:1]).save(tmp_path / "one")
    assert AuditResult.load(tmp_path / "one") == report.results[0]


def test_a_notebook_shows_the_page_in_a_frame_of_its_own(report):
    shown = report._repr_html_()
    assert shown.startswith('<iframe srcdoc="&lt;!DOCTYPE html&gt;')
    assert shown.count('"') == 6  # the page itself is escaped
    assert str(report).startswith(report.verdict.headline)
    assert "What to do: Do not match the raw features of blocks 1, 2 and 3 by MSE." in str(report)


def test_a_report_needs_no_matplotlib(report, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else find(name))
    plain = AuditReport(report.results, report.comparisons, snapshots=report.snapshots)
    page = plain.save(tmp_path).read_text(encoding="utf-8")
    assert "<h2>Figures</h2>" not in page
    assert report.verdict.headline in page


def test_several_models_have_one_table_on_top_and_one_scale(report):
    page = report.page
    assert page.index("<h2>All models</h2>") < page.index(report.verdict.headline)
    row = "<td>teacher</td><td>artifacts</td><td>1 to 3 (3)</td><td>3</td><td>8.3 %</td><td>13.4</td><td>91 %</td>"
    assert row in page
    (figure,) = (entry.figure for entry in report.figures if entry.name == "models")
    maps = [image for axis in figure.axes for image in axis.images if image.get_array().ndim == 2]
    assert len(maps) == 2 * 2
    assert len({id(image.norm) for image in maps}) == 1
    assert float(maps[0].get_array().max()) == pytest.approx(13.37, abs=0.01)
