import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest
import torch
from planted import planted_images, planted_vit
from zoo import tiny_vit

pytest.importorskip("matplotlib")

from singer_hf.data.pictures import to_pictures
from singer_hf.inspection.measure.audit import audit
from singer_hf.inspection.measure.audit_result import AuditResult
from singer_hf.inspection.measure.feature_comparison import compare_features
from singer_hf.inspection.measure.snapshots import take_snapshot
from singer_hf.inspection.report.page import draw_report_figures, render_report
from singer_hf.inspection.report.tables import number
from singer_hf.inspection.report.verdict import judge, percent

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NAME = "teacher <b>&"


@pytest.fixture(scope="module")
def page() -> str:
    models = [planted_vit(), tiny_vit(image_size=(32, 48))]
    results = [
        audit(m, planted_images(2), name=n, progress=False) for m, n in zip(models, (NAME, "student"), strict=True)
    ]
    results[1].notes.append("2 unreadable images left out")
    snapshots = [take_snapshot(m, planted_images(2), name=r.name) for m, r in zip(models, results, strict=True)]
    comparisons = {"student beside teacher": compare_features(*models[::-1], planted_images(2), progress=False)}
    verdicts = {result.name: judge(result) for result in results}
    figures = draw_report_figures(results, snapshots)
    return render_report(results, figures, verdicts, subtitle="2 images, seed 0", comparisons=comparisons)


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def _tags(page):
    parser = _Tags()
    parser.feed(page)
    return parser.found


def test_the_page_is_one_file_without_scripts_or_links_outside(page):
    tags = _tags(page)
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object", "base"}
    sources = [attrs[key] for _, attrs in tags for key in ("src", "href", "srcset") if key in attrs]
    assert len(sources) == 10
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http://" not in page
    assert "https://" not in page
    assert "url(" not in page
    assert "@import" not in page


def test_the_verdict_comes_before_figures_and_metrics(page):
    headline = "teacher &lt;b&gt;&amp; has artifacts: high-norm patch tokens that would dominate a feature loss."
    assert page.index(headline) < page.index("<h2>Figures</h2>") < page.index("Compared with the first model")
    assert page.index("student shows no high-norm artifacts on these images.") < page.index("<h2>Figures</h2>")
    assert "<b>" not in page
    assert "Note: 2 unreadable images left out." in page
    assert "What to do:" in page


def test_every_figure_has_an_alternative_text_and_a_size(page):
    images = [attrs for tag, attrs in _tags(page) if tag == "img"]
    assert all(image["alt"] and int(image["width"]) > 100 and int(image["height"]) > 100 for image in images)


def test_tables_hold_the_numbers_of_the_audit(page):
    rows = re.findall(r"<tr[^>]*>(<td>.*?)</tr>", page)
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in rows]
    block = next(row for row in cells if row[0] == "1" and len(row) == 20)
    assert block[:7] == ["1", "3", "13.4", "13.4", "12 %", "13.4", "67 %"]


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0 %"), (0.00042, "0.042 %"), (0.031, "3.1 %"), (0.68, "68 %"), (None, "-")]
)
def test_shares_have_two_digits(share, text):
    assert percent(share) == text


@pytest.mark.parametrize(("value", "text"), [(0.12345, "0.123"), (12.345, "12.3"), (12345.6, "12346"), (None, "-")])
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def _with(result: AuditResult, **changes) -> AuditResult:
    data = result.to_dict()
    for block in data["blocks"]:
        block.update(changes)
    return AuditResult.from_dict(data)


def test_weak_outliers_get_a_milder_verdict():
    planted = audit(planted_vit(), planted_images(2), name="teacher", progress=False)
    shares = {"loss_zero": 0.05, "gradient_zero": 0.05, "loss_mean": 0.05, "gradient_mean": 0.05}
    verdict = judge(_with(planted, kd_shares=shares))
    assert verdict.level == "few"
    assert verdict.headline == "teacher has a few high-norm patch tokens, too weak to dominate a feature loss."


def test_tokens_of_twice_the_median_are_no_artifacts():
    planted = audit(planted_vit(), planted_images(2), name="teacher", progress=False)
    quantiles = planted.blocks[0].norm_quantiles | {"p99.9": 2.2 * planted.blocks[0].norm_quantiles["p50"]}
    verdict = judge(_with(planted, outlier_strength=2.1, norm_quantiles=quantiles))
    assert verdict.level == "clean"
    assert verdict.sentences[0] == (
        "Block 1 has the most outliers: 12 % of the patches, with a mean norm of 2.1 times the median of their image. "
        "They are too few or too weak to be artifacts."
    )


def test_the_advice_names_the_blocks_and_what_an_adapter_left():
    planted = audit(planted_vit(), planted_images(2), progress=False)
    assert "raw features of blocks 1, 2 and 3 by MSE" in judge(planted).advice
    planted.refined = [planted.blocks[3]]
    assert judge(planted).advice.startswith("The adapter does not yet remove the outliers at block 3")
    planted.refined = [planted.blocks[0]]
    assert judge(planted).advice == (
        "Distil from the refined features: their outliers have a small share of the loss."
    )


def test_pictures_undo_the_normalisation():
    pixels = torch.full((1, 3, 2, 2), 0.5)
    shown = to_pictures(pixels, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 1.0))
    assert shown[0, 0, 0].tolist() == pytest.approx([0.6, 0.5, 0.8])
    assert to_pictures(torch.tensor([-3.0, 5.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2)).unique().tolist() == [0.0, 1.0]


def _requests(html: str, folder) -> set[str]:
    """Addresses that a browser asks for when it opens a page, its own housekeeping left out."""
    file, log = folder / "page.html", folder / "net.json"
    file.write_text(html, encoding="utf-8")
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        *quiet,
        f"--user-data-dir={folder / 'profile'}",
    ]
    command += [f"--log-net-log={log}", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "</html>" in done.stdout
    events = json.loads(log.read_text())["events"]
    asked = {event["params"]["url"] for event in events if "url" in (event.get("params") or {})}
    own = ("google.com", "googleapis.com", "gstatic.com")
    return {url for url in asked if not (urlsplit(url).hostname or "").endswith(own) and url.startswith("http")}


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")
def test_a_browser_opens_the_page_without_a_request_leaving_it(page, tmp_path):
    assert _requests(page, tmp_path) == set()


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")
def test_the_browser_check_sees_a_request(tmp_path):
    asking = '<html><body><img src="http://127.0.0.1:9/x.png"></body></html>'
    assert _requests(asking, tmp_path) == {"http://127.0.0.1:9/x.png"}
