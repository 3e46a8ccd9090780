"""The test Hub against the real clients, which run in processes of their own: they read the environment at import."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.request import urlopen

import pytest
from hub_server import FAILURES, TOKEN, FakeHub
from hub_storage import Repositories, card_errors, is_lfs

SERVER = Path(__file__).parents[1] / "builders" / "hub_server.py"
MODEL = "someone/tiny"

# The waits between the client's retries are taken out; what it retries is not touched.
CLIENT = """
import json, sys, time
from pathlib import Path
time.sleep = lambda seconds: None
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
api, folder = HfApi(), Path(sys.argv[1])
def attempt(action):
    try:
        return action()
    except Exception as error:
        return [type(error).__name__, str(error)]
"""

FAILING = """
out = {}
for repo in ("someone/forbidden", "someone/cut", "someone/error"):
    out[repo] = attempt(lambda: api.create_repo(repo, exist_ok=True).repo_id)
    out[repo + " push"] = attempt(lambda: api.upload_folder(repo_id=repo, folder_path=folder).oid)
out["other create"] = attempt(lambda: api.create_repo("nobody/new", exist_ok=True).repo_id)
out["no repository"] = attempt(lambda: hf_hub_download("someone/none", "a.txt"))
out["no file"] = attempt(lambda: hf_hub_download("someone/cut", "a.txt"))
out["no revision"] = attempt(lambda: hf_hub_download("someone/cut", "a.txt", revision="v9"))
out["bad token"] = attempt(lambda: api.create_repo("someone/bad", token="hf_wrong").repo_id)
(folder / "README.md").write_text("---\\nbase_model: /home/me/teacher\\n---\\nHello")
api.create_repo("someone/card")
out["bad card"] = attempt(lambda: api.upload_folder(repo_id="someone/card", folder_path=folder).oid)
print(json.dumps(out))
"""

ROUND_TRIP = """
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoImageProcessor, AutoModel, ViTConfig, ViTImageProcessor, ViTModel
import singer_hf
torch.manual_seed(0)
sizes = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64)
sizes |= dict(image_size=32, patch_size=8)
teacher, pixels = ViTModel(ViTConfig(**sizes), add_pooling_layer=False).eval(), torch.rand(1, 3, 32, 32)
teacher.save_pretrained(folder)
ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
(folder / "README.md").write_text("---\\nlicense: mit\\n---\\nHello")
adapted = get_peft_model(AutoModel.from_pretrained(folder), singer_hf.SingerConfig(r=4)).eval()
adapted.save_pretrained(folder / "singer")
first = api.create_repo("tiny")
second = api.create_repo("someone/tiny", exist_ok=True)
first_commit = api.upload_folder(repo_id="someone/tiny", folder_path=folder, commit_message="weights").oid
second_commit = api.upload_folder(repo_id="someone/tiny", folder_path=folder).oid
(folder / "README.md").write_text("---\\nlicense: mit\\n---\\nHello again")
api.upload_folder(repo_id="someone/tiny", folder_path=folder, commit_message="card")
copy = Path(snapshot_download("someone/tiny"))
old = hf_hub_download("someone/tiny", "README.md", revision=first_commit)
own = [path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts]
with torch.no_grad():
    model = AutoModel.from_pretrained("someone/tiny", add_pooling_layer=False).eval()
    refined = PeftModel.from_pretrained(teacher, "someone/tiny", subfolder="singer").eval()
    print(json.dumps({
        "names": [first.repo_id, second.repo_id, api.whoami()["name"]],
        "same commit": first_commit == second_commit,
        "equal files": all((copy / path.relative_to(folder)).read_bytes() == path.read_bytes() for path in own),
        "model": torch.equal(model(pixels).last_hidden_state, AutoModel.from_pretrained(folder)(pixels)[0]),
        "refined": torch.equal(refined(pixels).last_hidden_state, adapted(pixels).last_hidden_state),
        "processor": AutoImageProcessor.from_pretrained("someone/tiny").size["height"],
        "subfolder": json.loads(Path(hf_hub_download("someone/tiny", "adapter_config.json", subfolder="singer"))
                                .read_text())["r"],
        "old card": Path(old).read_text(),
        "tree": sorted(entry.path for entry in api.list_repo_tree("someone/tiny")),
        "files": sorted(api.list_repo_files("someone/tiny")),
        "exists": [api.file_exists("someone/tiny", "config.json"), api.file_exists("someone/tiny", "nothing.json")],
    }))
"""


def client(hub: FakeHub, script: str, folder: Path) -> dict:
    """Run a script with the real client against the Hub; what it printed as its last line."""
    run = subprocess.run(
        [sys.executable, "-c", CLIENT + script, str(folder)],
        env={**os.environ, **hub.environment(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeHub, dict]]:
    folder = tmp_path_factory.mktemp("folder")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(300_000))
    with FakeHub() as hub:
        hub.create_repo("someone/forbidden")
        hub.failures = {f"someone/{kind}": kind for kind in FAILURES} | {"nobody/new": "forbidden"}
        yield hub, client(hub, FAILING, folder)


@pytest.fixture(scope="module")
def round_trip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeHub, dict, Path]]:
    directory = tmp_path_factory.mktemp("hub")
    with FakeHub(directory=directory) as hub:
        yield hub, client(hub, ROUND_TRIP, tmp_path_factory.mktemp("model")), directory


def test_without_rights_a_push_to_an_existing_repository_ends_with_403(failed: tuple) -> None:
    hub, out = failed
    assert out["someone/forbidden"] == "someone/forbidden"
    kind, message = out["someone/forbidden push"]
    assert kind == "HfHubHTTPError"
    assert "403 Forbidden: You don't have the rights to write to this repository." in message
    assert "Make sure your token has the correct permissions." in message
    assert hub.files("someone/forbidden") == {}


def test_without_rights_a_new_repository_cannot_be_made(failed: tuple) -> None:
    assert "You don't have the rights to create a model under this namespace" in failed[1]["other create"][1]


def test_a_connection_cut_in_mid_upload_is_retried_then_given_up_and_nothing_is_committed(failed: tuple) -> None:
    hub, out = failed
    assert out["someone/cut push"] == ["RuntimeError", "Error while uploading 'model.safetensors' to the Hub."]
    assert sum(request.startswith("PUT /lfs/someone/cut/") for request in hub.requests) == 6
    assert hub.files("someone/cut") == {}


def test_a_server_error_at_the_commit_ends_the_push_and_nothing_is_committed(failed: tuple) -> None:
    hub, out = failed
    assert out["someone/error push"][0] == "HfHubHTTPError"
    assert "500" in out["someone/error push"][1]
    assert hub.files("someone/error") == {}


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("no repository", "RepositoryNotFoundError"),
        ("no file", "RemoteEntryNotFoundError"),
        ("no revision", "RevisionNotFoundError"),
        ("bad token", "HfHubHTTPError"),
    ],
)
def test_what_is_not_there_raises_what_the_real_hub_raises(failed: tuple, case: str, expected: str) -> None:
    assert failed[1][case][0] == expected


def test_a_local_path_as_base_model_is_refused_before_any_file_is_sent(failed: tuple) -> None:
    hub, out = failed
    kind, message = out["bad card"]
    assert kind == "ValueError"
    assert '"base_model" with value "/home/me/teacher" is not valid. Use a model id from' in message
    assert hub.files("someone/card") == {}


def test_after_the_failure_is_switched_off_the_same_folder_is_pushed(failed: tuple, tmp_path: Path) -> None:
    hub, _ = failed
    hub.failures = {}
    (tmp_path / "model.safetensors").write_bytes(bytes(300_000))
    script = 'print(json.dumps(attempt(lambda: api.upload_folder(repo_id="someone/cut", folder_path=folder).oid)))'
    assert client(hub, script, tmp_path) == hub.repos["someone/cut"].head
    assert hub.files("someone/cut") == {"model.safetensors": bytes(300_000)}


def test_a_pushed_model_processor_and_adapter_come_back_equal(round_trip: tuple) -> None:
    _, out, _ = round_trip
    assert out["model"] is True
    assert out["refined"] is True
    assert out["processor"] == 32
    assert out["subfolder"] == 4
    assert out["equal files"] is True


def test_an_unchanged_folder_makes_no_second_commit_and_old_commits_stay_readable(round_trip: tuple) -> None:
    hub, out, _ = round_trip
    assert out["same commit"] is True
    assert hub.messages(MODEL) == ["initial commit", "weights", "card"]
    assert out["old card"].endswith("Hello")


def test_names_and_listings_are_those_of_the_pushed_files(round_trip: tuple) -> None:
    hub, out, _ = round_trip
    assert out["names"] == [MODEL, MODEL, "someone"]
    assert out["files"] == sorted(hub.files(MODEL))
    assert out["tree"] == ["README.md", "config.json", "model.safetensors", "preprocessor_config.json", "singer"]
    assert out["exists"] == [True, False]


def test_large_and_binary_files_went_as_lfs_objects_and_the_token_into_none(round_trip: tuple) -> None:
    hub, _, _ = round_trip
    files = hub.files(MODEL)
    assert files["model.safetensors"] in hub.objects.values()
    assert files["config.json"] not in hub.objects.values()
    assert not any(TOKEN.encode() in content for content in files.values())


def test_files_lie_in_the_directory_and_are_found_again(round_trip: tuple) -> None:
    hub, _, directory = round_trip
    assert (directory / MODEL / "README.md").read_text().endswith("Hello again")
    assert Repositories(directory).files(MODEL) == hub.files(MODEL)


def test_the_command_prints_the_environment_and_serves(tmp_path: Path) -> None:
    (tmp_path / "someone" / "tiny").mkdir(parents=True)
    (tmp_path / "someone" / "tiny" / "config.json").write_text("{}")
    command = [sys.executable, str(SERVER), "--port", "0", "--directory", str(tmp_path), "--failure", "forbidden"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        line = server.stdout.readline()
        assert line.startswith("export HF_ENDPOINT=http://127.0.0.1:")
        url = line.split("=")[1].strip()
        assert urlopen(f"{url}/someone/tiny/resolve/main/config.json").read() == b"{}"
        server.terminate()


def test_a_body_sent_in_chunks_is_put_together_and_the_connection_stays_usable() -> None:
    content = bytes(range(256)) * 1000
    oid = hashlib.sha256(content).hexdigest()
    pieces = (content[start : start + 100_000] for start in range(0, len(content), 100_000))
    with FakeHub() as hub:
        connection = HTTPConnection(hub.url.removeprefix("http://"))
        for path, body, status in ((f"/lfs/someone/x/{oid}", pieces, 200), (f"/lfs/someone/x/{oid}", [b"y"], 400)):
            connection.request(
                "PUT", path, body=iter(body), encode_chunked=True, headers={"Transfer-Encoding": "chunked"}
            )
            response = connection.getresponse()
            assert (response.status, response.read() == b"") == (status, status == 200)
        connection.close()
        assert hub.objects == {oid: content}


@pytest.mark.parametrize(
    ("path", "sample", "size", "expected"),
    [
        ("model.safetensors", b"x", 1, True),
        ("model.safetensors", b"", 0, False),
        ("figure.png", b"\x89PNG\0", 9, True),
        ("config.json", b"{}", 2, False),
        ("notes.txt", b"text", 10 * 2**20, True),
    ],
)
def test_which_files_are_lfs(path: str, sample: bytes, size: int, expected: bool) -> None:
    assert is_lfs(path, sample, size) is expected


def test_yaml_that_does_not_parse_is_an_error_and_a_card_without_metadata_is_none() -> None:
    assert card_errors("---\na: [1\n---\n")[0].startswith("YAML is not valid")
    assert card_errors("---\n- a\n---\n") == ["Card metadata must be an object"]
    assert card_errors("Hello") == []
    assert card_errors("---\nbase_model: [a/b, gpt2]\n---\n") == []
