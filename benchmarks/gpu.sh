#!/usr/bin/env bash
# What is to be known on a GPU, in one call of under ten minutes: the `gpu` tests, step times and memory of ViT-L/16 ->
# ViT-T/16 and DINOv2-L -> ViT-S/14 in bf16, eager and compiled, a dry run with images from files, an audit, a probe.
# Writes gpu.json and gpu.md (the table of docs/performance.md) into outputs/gpu, or the folder of --output_dir.
# `bash benchmarks/gpu.sh --small` runs the same with tiny models on any machine, to see that everything works.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" benchmarks/gpu.py "$@"
