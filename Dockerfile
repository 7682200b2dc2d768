# The project on NVIDIA GPUs: CUDA 13.0, Python 3.11, requirements/gpu.txt. Not built by us: no GPU, no registry of images was at hand.
#
#   docker build -t rlhf .
#   docker run --gpus all --shm-size=16g -v $PWD/runs:/opt/rlhf/runs rlhf doctor configs/reward/llama-3.1-8b.yaml
#
# --shm-size: NCCL and data loaders use /dev/shm, of which a container gets 64 MiB by itself. The development image has the compiler that
# torch.compile, FlashInfer and Triton call. The driver of the host must take CUDA 13 (580 or newer): `rlhf doctor` says so.
FROM nvidia/cuda:13.0.2-devel-ubuntu22.04

ENV DEBIAN_FRONTEND=noninteractive PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
RUN apt-get update \
 && apt-get install --yes --no-install-recommends software-properties-common make git g++ \
 && add-apt-repository --yes ppa:deadsnakes/ppa \
 && apt-get install --yes --no-install-recommends python3.11 python3.11-venv python3.11-dev \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/rlhf
COPY . .
RUN make venv BACKEND=gpu PYTHON=python3.11

ENV PATH=/opt/rlhf/.venv/bin:$PATH
ENTRYPOINT ["rlhf"]
CMD ["doctor"]
