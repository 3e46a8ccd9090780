"""A cleaned teacher's adapter on a Hub on this machine, pushed and read back with the real client."""

import pytest
from hub_server import FakeHub
from runs import run_script

REPO = "someone/adapter"
FILES = {
    *("README.md", "adapter_config.json", "adapter_model.safetensors", "preprocessor_config.json"),
    *("training_args.json", "report.html", "audit.json", "before_after.png"),
}


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    pytest.importorskip("matplotlib")
    with FakeHub() as hub:
        yield hub, run_script("hub_run.py", tmp_path_factory.mktemp("hub"), "clean", **hub.environment())["clean"]


def test_a_stranger_gets_the_same_cleaned_teacher(pushed):
    assert pushed[1]["equal"]


def test_adapter_card_and_page_are_pushed_and_nothing_else(pushed):
    files = {name for name in pushed[1]["copied"] if not name.startswith("figures/")}
    assert files - {".gitattributes"} == FILES
    assert "| 3 | 12 % |" in pushed[1]["card"]


def test_checkpoints_are_pushed_without_what_resuming_needs(pushed):
    hub = pushed[0]
    assert "Training in progress, step 2" in hub.messages(REPO)
    for files in hub.repos[REPO].commits.values():
        assert not {name for name in files if name.startswith(("optimizer", "rng_state", "trainer_state"))}
