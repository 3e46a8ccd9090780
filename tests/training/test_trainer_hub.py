"""Pushing a run to a Hub on this machine with the real client, and reading it back; pushes that fail."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import TOKEN, FakeHub
from runs import FIGURES, files_in, run_script

REPO = "someone/student"
SAVED = {
    *("README.md", "config.json", "model.safetensors", "preprocessor_config.json", "training_args.json"),
    *("projectors/model.safetensors", "target_norms/model.safetensors", "singer/README.md"),
    *("singer/adapter_config.json", "singer/adapter_model.safetensors"),
}
HUBS_OWN = {".gitattributes"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The Hub after all runs, which one process did, their folder, and what each read back."""
    folder = tmp_path_factory.mktemp("hub")
    with FakeHub() as hub:
        hub.failures = {f"someone/{kind}": kind for kind in ("forbidden", "cut", "error")}
        yield hub, folder, run_script("hub_run.py", folder, "push", "students", "fail", **hub.environment())


@pytest.fixture(scope="module")
def pushed(runs):
    """The Hub, the folder of a run that pushed at every save and at its end, and what was read back."""
    hub, folder, results = runs
    return hub, folder / "push", results["push"]


@pytest.fixture(scope="module")
def failed(runs):
    hub, folder, results = runs
    return hub, folder / "fail", results["fail"]


def test_student_adapter_and_processor_are_read_back_equal(pushed):
    _, _, read = pushed
    assert read["student"] == []
    assert read["refined"]
    assert read["processor"]


def test_a_snapshot_is_the_output_folder_without_what_resuming_needs(pushed):
    _, folder, read = pushed
    assert set(read["copied"]) - HUBS_OWN == SAVED | FIGURES
    assert read["equal"]
    assert {name for name in files_in(folder) if not name.startswith("checkpoint-")} == SAVED | FIGURES


def test_every_save_is_pushed_in_the_same_layout(pushed):
    hub, _, _ = pushed
    assert hub.messages(REPO)[1:3] == ["Training in progress, step 2", "Training in progress, step 4"]
    for files in list(hub.repos[REPO].commits.values())[1:3]:
        assert set(files) - HUBS_OWN == SAVED


def test_the_card_tells_how_to_load_what_was_pushed(pushed):
    card = pushed[2]["card"]
    assert f'AutoModel.from_pretrained("{REPO}", add_pooling_layer=False)' in card
    assert "singer-hf" in card
    assert 'subfolder="singer"' in card


def test_the_token_is_in_no_file(pushed):
    hub, folder, _ = pushed
    for name in files_in(folder):
        assert TOKEN.encode() not in (folder / name).read_bytes(), name
    assert not any(TOKEN.encode() in content for content in hub.files(REPO).values())


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("forbidden", "HfHubHTTPError: .*403"), ("cut", r"\w+: "), ("error", "HfHubHTTPError: .*500")],
)
def test_a_push_that_fails_says_how_to_push_again(failed, kind, reason):
    _, folder, results = failed
    command = f'hf upload someone/{kind} {folder} --exclude "checkpoint-*"'
    end = f"Everything is saved in {str(folder)!r}; upload it without training: {command}"
    message = results[kind]["message"]
    assert re.match(rf"the upload failed \({reason}", message, re.DOTALL), message
    assert message.endswith(end)


@pytest.mark.parametrize("kind", ["forbidden", "cut", "error"])
def test_a_push_that_fails_leaves_the_folder_whole(failed, kind):
    """Even the first one, refused before anything was saved at the end of the training."""
    files = {name for name in failed[2][kind]["files"] if not name.startswith("checkpoint-")}
    assert files == SAVED | FIGURES


def test_the_printed_command_uploads_the_run_without_training(failed):
    hub, folder, results = failed
    hub.failures = {}
    command = shlex.split(results["cut"]["message"].split("without training: ")[1])
    program = Path(sys.executable).with_name("hf")
    assert command[0] == "hf"
    subprocess.run(
        [str(program), *command[1:]], env={**os.environ, **hub.environment()}, check=True, capture_output=True
    )
    files = hub.files("someone/cut")
    assert set(files) - HUBS_OWN == SAVED | FIGURES
    assert all(files[name] == (folder / name).read_bytes() for name in SAVED)


def test_training_goes_on_when_its_pushes_fail(failed):
    trained = failed[2]["trained"]
    assert trained["step"] == 4
    assert trained["warnings"]
    expected = r"the upload of .+checkpoint-\d failed \(HfHubHTTPError: .+\); training goes on\. By hand: hf upload "
    assert all(re.match(expected, message, re.DOTALL) for message in trained["warnings"])


def test_every_student_of_a_run_gets_a_repository_of_its_own(runs):
    hub, _, results = runs
    assert {name for name in hub.repos if name.startswith(f"{REPO}-")} == {f"{REPO}-a", f"{REPO}-b"}
    assert hub.messages(f"{REPO}-b")[1:] == [
        "Training in progress, step 2",
        "Training in progress, step 4",
        "End of training",
    ]
    assert results["students"]["left"] == []
    for name, student in results["students"]["students"].items():
        assert student["differing"] == []
        assert set(student["copied"]) - HUBS_OWN == SAVED | FIGURES
        assert f'AutoModel.from_pretrained("{REPO}-{name}"' in student["card"]
