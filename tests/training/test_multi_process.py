"""Two gloo processes on the CPU against one; and the accelerate configurations that start many."""

import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from peft import get_peft_model
from runs import adapter, differing, files_in, image_dataset, make_trainer, run_script, small_student
from zoo import tiny_vit

from singer_hf import SingerDistiller

pytestmark = pytest.mark.filterwarnings("ignore:block .* exceeds the effective null dimension")

CONFIGS = Path(__file__).parents[2] / "examples" / "accelerate"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two_ranks")


@pytest.fixture(scope="module")
def two_ranks(folder):
    # The ranks must find each other whatever this machine is called.
    interface = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return run_script("two_ranks.py", folder, launcher=TORCHRUN, **interface)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    trainer = make_trainer(tmp_path_factory.mktemp("one"), per_device_train_batch_size=4, max_steps=4, info_share=1)
    trainer.train()
    return trainer


def test_both_ranks_take_part_and_end_with_the_same_weights(two_ranks):
    assert two_ranks["world"] == 2
    assert two_ranks["same"]


def test_a_cleaning_ends_with_the_same_adapter_on_both_ranks(two_ranks):
    assert two_ranks["cleaned"] == {"same": True, "batches": 4, "files": ["adapter_model.safetensors"]}


def test_several_students_end_with_the_same_weights_on_both_ranks(two_ranks):
    assert two_ranks["students"] == {"same": True, "saved": ["a", "b"]}


def test_two_ranks_share_one_cache_of_features(two_ranks):
    assert two_ranks["cached"]


@pytest.fixture(scope="module")
def one_process_of_tokens(tmp_path_factory):
    """Statistics by channel see the parts of an accumulated step one by one, so they are left out."""
    folder = tmp_path_factory.mktemp("tokens")
    trainer = make_trainer(folder, per_device_train_batch_size=4, max_steps=4, info_share=1, target_norm="token")
    trainer.train()
    return trainer


@pytest.mark.parametrize("run", ["rows", "checkpointed", "accumulated"])
def test_the_same_global_batch_gives_the_losses_of_one_process(two_ranks, one_process, one_process_of_tokens, run):
    one_process = one_process_of_tokens if run == "accumulated" else one_process
    rows = [row for row in one_process.state.log_history if "loss" in row]
    assert len(two_ranks[run]) == len(rows) == 4
    for row, expected in zip(two_ranks[run], rows, strict=True):
        assert row == pytest.approx({name: expected[name] for name in row}, rel=1e-5, abs=1e-8)


def test_two_ranks_resume_bit_for_bit(two_ranks):
    assert two_ranks["resumed"]


def test_statistics_of_targets_and_gates_are_those_of_both_ranks(two_ranks):
    """Means and the direction of a gate are those of all images; its medians are the mean of both ranks'."""
    statistics = two_ranks["statistics"]
    assert statistics["same"]
    assert statistics["ranks differ"]
    for own, expected in (*zip(*statistics["channels"], strict=True), *zip(*statistics["gate"], strict=True)):
        torch.testing.assert_close(torch.tensor(own), torch.tensor(expected))


def test_a_run_that_observes_statistics_ends_and_resumes_alike_on_both_ranks(two_ranks):
    assert two_ranks["observing"] == {"same": True, "resumed": True, "batches": [4, 4, 4, 4]}


def test_a_signal_to_one_rank_stops_both_at_the_same_step(two_ranks, folder):
    assert two_ranks["codes"] == [143, 143]
    assert (folder / "signalled" / "checkpoint-3").is_dir()
    assert two_ranks["requeued"]


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
    assert result["parts"] == (117 if everything else 36)
    assert result["missing"] == []
    assert result["worst"] < 1e-4
    for sharded, whole in result["losses"]:
        assert sharded == pytest.approx(whole, rel=1e-5)
    assert result["saved"] < 1e-5


@pytest.mark.parametrize(
    ("name", "kind", "machines", "processes"),
    [
        ("one_gpu", "NO", 1, 1),
        ("multi_gpu", "MULTI_GPU", 1, 8),
        ("multi_node", "MULTI_GPU", 2, 16),
        ("fsdp2", "FSDP", 1, 8),
    ],
)
def test_accelerate_reads_the_configurations(name, kind, machines, processes):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert (config.distributed_type, config.num_machines, config.num_processes) == (kind, machines, processes)
    assert config.mixed_precision == "bf16"
    assert not config.use_cpu


def test_the_launchers_parser_takes_every_configuration():
    """Unknown keys and wrong values are found here, before a machine with many GPUs is needed."""
    for file in sorted(CONFIGS.glob("*.yaml")):
        args = launch_command_parser().parse_args(["--config_file", str(file), "train.py"])
        args, config, mixed_precision = _validate_launch_command(args)
        assert mixed_precision or args.mixed_precision == "bf16", file
        assert args.num_processes >= 1
        assert config is not None


def test_the_fsdp_configuration_splits_the_blocks_of_both_models():
    """Class names differ between families, so they are read off the composite; adapters stay around the blocks."""
    config = load_config_from_file(str(CONFIGS / "fsdp2.yaml")).fsdp_config
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=config["fsdp_version"], auto_wrap_policy=config["fsdp_auto_wrap_policy"]
    )
    teacher = get_peft_model(tiny_vit(), adapter())
    distiller = SingerDistiller(small_student(), teacher)
    plugin.set_auto_wrap_policy(distiller)
    is_split = fsdp2_prepare_auto_wrap_policy(plugin, distiller)
    blocks = [*distiller.teacher_view.blocks, *distiller.student_extractor.view.blocks]
    assert [module for module in distiller.modules() if is_split(module)] == [
        module for module in distiller.modules() if any(module is block for block in blocks)
    ]
    assert len(blocks) == 6


@pytest.mark.parametrize("options", [{"load_best_model_at_end": True, "eval_strategy": "steps"}, {"ema_decay": 0.9}])
def test_what_does_not_work_with_fsdp_is_refused_before_training(tmp_path, options):
    trainer = make_trainer(tmp_path, eval_dataset=image_dataset(4), **options)
    trainer.is_fsdp_enabled = True
    message = "^resuming, `load_best_model_at_end` and `ema_decay` do not work with FSDP, which splits the weights; "
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_resuming_does_not_work_with_fsdp(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match=r"^resuming, .+ \(examples/accelerate/multi_gpu.yaml\)$"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
