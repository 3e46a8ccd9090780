"""Two gloo processes: `torchrun --nproc_per_node 2 tests/builders/two_ranks.py OUTPUT_DIR`; rank 0 prints JSON."""

import copy
import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import transformers as hf
from cleanings import clean_planted
from peft import get_peft_model
from runs import StopAt, adapter, files_in, make_trainer, small_student
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from zoo import images, tiny_vit

from singer_hf import SingerDistiller
from singer_hf.distillation.target_norm import ChannelNorm
from singer_hf.training.checkpoint import save_distilled
from singer_hf.tuner.gate import OutlierGate

# L_info of a part of the images would be of other images in one process.
BATCH = {"per_device_train_batch_size": 2, "max_steps": 4, "info_share": 1}
ROW = ("loss", "kd_loss", "outlier_loss", "info_loss", "grad_norm")


def equal_on_both_ranks(state: dict[str, Tensor]) -> bool:
    gathered = [None, None]
    dist.all_gather_object(gathered, {name: value.cpu() for name, value in state.items()})
    return all(torch.equal(value, gathered[1][name]) for name, value in gathered[0].items())


def train(folder: Path, *callbacks: object, resume: bool = False, **options: object) -> dict:
    trainer = make_trainer(folder, callbacks=list(callbacks), **{**BATCH, **options})
    trainer.train(resume_from_checkpoint=resume or None)
    trainer.save_model()
    rows = [{name: row.get(name) for name in ROW} for row in trainer.state.log_history if "loss" in row]
    state = trainer.distiller.state_dict()
    return {"rows": rows, "same": equal_on_both_ranks(state), "state": state, "world": trainer.args.world_size}


def shard(distiller: SingerDistiller, mesh: object, everything: bool) -> None:
    """FSDP2 of the student's blocks and the projectors; or of all, the teacher's own blocks included."""
    teacher_blocks = distiller.teacher_view.blocks if everything else ()
    for module in (*distiller.student_extractor.view.blocks, *distiller.projectors.values(), *teacher_blocks):
        fully_shard(module, mesh=mesh)
    if everything:
        fully_shard(distiller, mesh=mesh)


def full_gradient(parameter: nn.Parameter) -> Tensor | None:
    """The mean over both ranks; FSDP takes it of what it shards."""
    if parameter.grad is None:
        return None
    if hasattr(parameter.grad, "full_tensor"):
        return parameter.grad.full_tensor()
    gradient = parameter.grad.clone()
    dist.all_reduce(gradient)
    parameter.grad = gradient / 2
    return parameter.grad


def sharded_steps(everything: bool, folder: Path) -> dict:
    """Two SGD steps, each rank on half of the batch, beside an unsharded copy on the whole batch."""
    torch.manual_seed(0)
    teacher = get_peft_model(tiny_vit(), adapter())
    sharded = SingerDistiller(small_student(), teacher, info_share=1).train()
    plain = copy.deepcopy(sharded)
    shard(sharded, init_device_mesh("cpu", (2,)), everything)
    half = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    worst, missing, losses = 0.0, [], []
    models = (sharded, plain)
    optimizers = [torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=1e-3) for m in models]
    for step in range(2):
        pixel_values = images(batch=4, seed=step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = sharded(pixel_values[half]).loss
        loss.backward()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        whole = plain(pixel_values).loss
        whole.backward()
        losses.append((mean.item() / 2, whole.item()))
        expected = dict(plain.named_parameters())
        for name, parameter in sharded.named_parameters():
            gradient = full_gradient(parameter)
            if gradient is None or expected[name].grad is None:
                missing += [name] * ((gradient is None) != (expected[name].grad is None))
            else:
                scale = expected[name].grad.norm().clamp(min=1e-3)
                worst = max(worst, float((gradient - expected[name].grad).norm() / scale))
        for optimizer in optimizers:
            optimizer.step()
    result = {"worst": worst, "missing": missing, "losses": losses}
    result["parts"] = sum(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    result["saved"] = saved_like(sharded, plain, folder)
    return result


def saved_like(sharded: SingerDistiller, plain: SingerDistiller, folder: Path) -> float:
    """Largest difference between what is saved of the shards, gathered as the Trainer does, and of the copy."""
    state = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank():
        return 0.0
    save_distilled(sharded, folder / "sharded", state_dict=state)
    save_distilled(plain, folder / "plain")
    worst = 0.0
    for file in files_in(folder / "plain"):
        if file.endswith(".safetensors"):
            own, expected = load_file(folder / "sharded" / file), load_file(folder / "plain" / file)
            worst = max(worst, *(float((own[name] - value).abs().max()) for name, value in expected.items()))
    return worst


def observed(tokens: list[Tensor]) -> tuple[ChannelNorm, OutlierGate]:
    norm, gate = ChannelNorm(tokens[0].shape[-1], 1), OutlierGate(tokens[0].shape[-1])
    for batch in tokens:
        norm.observe(batch)
        gate.observe(batch[:, 1:])
    return norm, gate


def statistics() -> dict:
    """Each rank sees half of the tokens; where all ranks see the same tokens, statistics are those of one process."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(4, 33, 8, generator=generator) * (k + 1) + 5 * k for k in range(3)]
    for batch in batches:
        batch[:, 4::8, 2:4] += torch.tensor([90.0, -70.0])  # outliers, and no others
    halves = [[batch[:2] for batch in batches], [batch[2:] for batch in batches]]
    norm, gate = observed(halves[dist.get_rank()])
    whole, whole_gate = observed(batches)
    gates = [observed(half)[1].state_dict() for half in halves]
    expected = {name: (gates[0][name] + gates[1][name]) / 2 for name in ("location", "deviation", "excess")}
    expected |= {name: whole_gate.state_dict()[name] for name in ("share", "mean", "direction", "num_batches")}
    return {
        "same": equal_on_both_ranks({**norm.state_dict(), **gate.state_dict()}),
        "ranks differ": not torch.equal(gates[0]["location"], gates[1]["location"]),
        "channels": [[value.tolist() for value in module.state_dict().values()] for module in (norm, whole)],
        "gate": [[state[name].tolist() for name in expected] for state in (gate.state_dict(), expected)],
    }


class SignalRankOne(hf.TrainerCallback):
    """Sends SIGTERM to one of both processes, within the third step."""

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 2 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def stop_one_rank(folder: Path) -> list:
    """Exit codes of both ranks."""
    codes = [None, None]
    try:
        train(folder, SignalRankOne())
    except SystemExit as stopped:
        dist.all_gather_object(codes, stopped.code)
    return codes


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    straight = train(folder / "straight")
    train(folder / "stopped", StopAt(2))
    resumed = train(folder / "stopped", resume=True)
    checkpointed = train(folder / "checkpointed", activation_checkpointing=True)
    accumulated = train(
        folder / "accumulated", per_device_train_batch_size=1, gradient_accumulation_steps=2, target_norm="token"
    )
    result = {name: straight[name] for name in ("rows", "same", "world")}
    result["resumed"] = all(torch.equal(value, straight["state"][name]) for name, value in resumed["state"].items())
    result["codes"] = stop_one_rank(folder / "signalled")
    requeued = train(folder / "signalled", resume=True)
    result["requeued"] = all(torch.equal(value, straight["state"][name]) for name, value in requeued["state"].items())
    result["checkpointed"] = checkpointed["rows"]
    result["accumulated"] = accumulated["rows"]
    result["sharded"] = [sharded_steps(part, folder / f"shards{part}") for part in (False, True)]
    result["statistics"] = statistics()
    recommended = {"target_norm": "channel", "peft_config": adapter(gate="outlier")}
    observing = train(folder / "observing", **recommended)
    train(folder / "observing_stopped", StopAt(2), **recommended)
    again = train(folder / "observing_stopped", resume=True, **recommended)
    result["observing"] = {
        "same": observing["same"],
        "resumed": all(torch.equal(value, observing["state"][name]) for name, value in again["state"].items()),
        "batches": [int(value) for name, value in observing["state"].items() if name.endswith("num_batches")],
    }
    both = {"a": small_student(), "b": small_student(hidden_size=32)}
    group = train(folder / "students", model=both)
    result["students"] = {"same": group["same"], "saved": sorted(p.name for p in (folder / "students").glob("[ab]"))}
    cache = {"cache_teacher_features": str(folder / "features"), "num_cached_crops": 1, "max_steps": 8}
    written, read = (train(folder / name, **cache)["state"] for name in ("writing", "reading"))
    result["cached"] = all(torch.equal(value, written[name]) for name, value in read.items())
    cleaned = clean_planted(output_dir=str(folder / "cleaned"), max_steps=4, per_device_train_batch_size=4)
    result["cleaned"] = {
        "same": equal_on_both_ranks(cleaned.state_dict()),
        "batches": int(cleaned.base_model.singer_layers[1].singer_gate["default"].num_batches),
        "files": sorted(path.name for path in (folder / "cleaned").glob("*.safetensors")),
    }
    if dist.get_rank() == 0:
        print(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
