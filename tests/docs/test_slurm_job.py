"""The Slurm job of examples/slurm, with stand-ins for `srun`, `scontrol` and `singer-hf`."""

import os
import subprocess

import pytest
from printed import ROOT

TOOLS = {
    "scontrol": 'echo "scontrol $*" >> "$LOG"; if [ "$1" = show ]; then printf "node1\\nnode2\\n"; fi',
    "srun": 'while [[ "$1" == --* ]]; do shift; done; SLURM_PROCID=3 SLURM_LOCALID=1 exec "$@"',
    "singer-hf": 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $*" >> "$LOG"; exit "$STATUS"',
}
JOB = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NTASKS": "4", "SLURM_CPUS_PER_TASK": "6", "SLURM_JOB_ID": "17"}


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (143, True), (1, False)])
def test_a_job_resumes_and_is_queued_again_when_it_was_interrupted(tmp_path, status, requeued):
    for name, text in TOOLS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    settings = {
        **os.environ,
        **JOB,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOG": str(log),
        "STATUS": str(status),
    }
    job = ["bash", str(ROOT / "examples" / "slurm" / "distill.sbatch"), "--config", "a b"]
    assert subprocess.run(job, env=settings, check=False).returncode == status
    calls = log.read_text().splitlines()
    assert calls[0] == "scontrol show hostnames node[1-2]"
    assert calls[1] == "3 1 4 node1 distill --config a b --bf16 --dataloader_num_workers 6 --resume"
    assert calls[2:] == (["scontrol requeue 17"] if requeued else [])
