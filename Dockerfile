# singer-hf on one or more NVIDIA GPUs. The drivers and the NVIDIA container toolkit are those of the host.
#   docker build -t singer-hf .
#   docker run --gpus all --ipc=host -v "$PWD/photos:/data:ro" -v "$PWD/outputs:/work/outputs" singer-hf \
#     audit --model_name_or_path facebook/dinov2-base --dataset_name /data --output_dir outputs/audit
# The folder that is mounted as outputs must be writable for the container's user. Neither this file nor the choice of the
# base image is covered by a test: the image has not been built.
FROM pytorch/pytorch:2.9.1-cuda12.8-cudnn9-runtime

COPY pyproject.toml README.md LICENSE /src/
COPY singer_hf /src/singer_hf
# torch stays the one of the image; a torchvision that fits it is part of the image.
RUN pip install --no-cache-dir "/src[timm,plots]" && rm -rf /src

RUN useradd --create-home singer && mkdir -p /work/outputs && chown -R singer /work
USER singer
WORKDIR /work
ENV HF_HOME=/home/singer/.cache/huggingface
ENTRYPOINT ["singer-hf"]
CMD ["--help"]
