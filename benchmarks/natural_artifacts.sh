#!/usr/bin/env bash
# Trains a ViT-S/16 with MixUp and CutMix, whose high-norm tokens should grow by themselves, and its twin without.
#
#     bash benchmarks/natural_artifacts.sh
#     DATASET=path/to/imagenet bash benchmarks/natural_artifacts.sh --min_crop 0.08 --dataloader_num_workers 16
#
# Run it from the root of the repository. Repeat it to resume: finished teachers are skipped, a stopped one continues
# from its last checkpoint. Flags are passed to both trainings and win over those below. See docs/natural_artifacts.md.
set -euo pipefail

dataset=${DATASET:-endless scenes}
output=${OUTPUT:-outputs/natural}

train() {  # train NAME FLAG...: one teacher in $output/NAME
    local folder=$output/$1
    shift
    if [[ -f $folder/teacher.json ]]; then
        echo "$folder is finished"
        return
    fi
    local resume=()
    if compgen -G "$folder/checkpoint-*/trainer_state.json" > /dev/null; then
        resume=(--resume True)
    fi
    python examples/train_teacher.py --dataset_name "$dataset" --output_dir "$folder" \
        --teacher_config vit-small-patch16-224 \
        --max_steps 125000 --per_device_train_batch_size 1024 --dataloader_drop_last True --bf16 True --torch_compile True \
        --artifact_log_steps 2500 --save_strategy steps --save_steps 2500 --logging_steps 500 \
        --max_test_samples 5000 --planted_share 0 "$@" "${resume[@]}"
}

scenes=()
if [[ $dataset == "endless scenes" ]]; then
    scenes=(--saved_scenes 20000)  # for singer_hf/configs/compare/natural.yaml
fi
train mixed --mixup_alpha 0.8 --cutmix_alpha 1.0 "${scenes[@]}" "$@"
train plain "$@"
