"""Two gloo processes on the CPU against one; and the accelerate configurations that start many."""

import json
import os
from pathlib import Path

import pytest
import transformers as hf
from runs import differing, files_in, make_trainer, run_script

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")

CONFIGS = Path(__file__).parents[1] / "examples" / "accelerate"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two_ranks")


@pytest.fixture(scope="module")
def two_ranks(folder):
    # The ranks must find each other on this machine whatever it is called.
    return run_script("two_ranks.py", folder, launcher=TORCHRUN, GLOO_SOCKET_IFNAME="lo")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    trainer = make_trainer(tmp_path_factory.mktemp("one"), per_device_train_batch_size=4, max_steps=4)
    trainer.train()
    return trainer


def test_both_ranks_take_part_and_end_with_the_same_weights(two_ranks):
    assert two_ranks["world"] == 2
    assert two_ranks["same"]


@pytest.mark.parametrize("run", ["rows", "checkpointed", "accumulated"])
def test_the_same_global_batch_gives_the_losses_of_one_process(two_ranks, one_process, run):
    rows = [row for row in one_process.state.log_history if "loss" in row]
    assert len(two_ranks[run]) == len(rows) == 4
    for row, expected in zip(two_ranks[run], rows, strict=True):
        assert row == pytest.approx({name: expected[name] for name in row}, rel=1e-5, abs=1e-8)


def test_two_ranks_resume_bit_for_bit(two_ranks):
    assert two_ranks["resumed"]


def test_two_ranks_save_one_student(two_ranks, folder, one_process):
    files = files_in(folder / "straight" / "checkpoint-4")
    assert {"model.safetensors", "singer/adapter_model.safetensors", "projectors/model.safetensors"} <= files
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= files
    saved = hf.AutoModel.from_pretrained(folder / "straight", add_pooling_layer=False).state_dict()
    again = hf.AutoModel.from_pretrained(folder / "straight" / "checkpoint-4", add_pooling_layer=False).state_dict()
    assert differing(saved, again) == set()
    for name, value in one_process.student.state_dict().items():
        assert saved[name].sub(value).abs().max() < 1e-4, name


@pytest.mark.parametrize("everything", [False, True], ids=["student and projectors", "everything"])
def test_fully_sharded_steps_have_the_gradients_of_unsharded_ones(two_ranks, everything):
    result = two_ranks["sharded"][everything]
    assert result["missing"] == []
    assert result["worst"] < 1e-4
    for sharded, whole in result["losses"]:
        assert sharded == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "kind", "machines", "processes"),
    [("one_gpu", "NO", 1, 1), ("multi_gpu", "MULTI_GPU", 1, 8), ("multi_node", "MULTI_GPU", 2, 16), ("fsdp2", "FSDP", 1, 8)],
)
def test_accelerate_reads_the_configurations(name, kind, machines, processes):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert (config.distributed_type, config.num_machines, config.num_processes) == (kind, machines, processes)
    assert config.mixed_precision == "bf16"
    assert not config.use_cpu


def test_the_launchers_parser_takes_every_configuration():
    """Unknown keys and wrong values are found here, before a machine with many GPUs is needed."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    for file in sorted(CONFIGS.glob("*.yaml")):
        args = launch_command_parser().parse_args(["--config_file", str(file), "train.py"])
        args, config, mixed_precision = _validate_launch_command(args)
        assert mixed_precision or args.mixed_precision == "bf16", file
        assert args.num_processes >= 1
        assert config is not None


def test_the_fsdp_configuration_is_the_second_version_without_wrapping_by_class():
    """Class names of blocks differ between families; the root is sharded, and the teacher stays whole enough."""
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(CONFIGS / "fsdp2.yaml")).fsdp_config
    assert config["fsdp_version"] == 2
    assert json.dumps(config)
    assert os.environ.get("FSDP_VERSION") is None
