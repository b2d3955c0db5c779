# syntax=docker/dockerfile:1
# The embedded fleet on CPUs: real vLLM engines, router, models. Nothing is downloaded when it runs.
#
#   docker build -f deploy/docker/cpu.Dockerfile -t draftpick:cpu .
#   docker run --rm --init --shm-size 2g -p 8000:8000 draftpick:cpu        # x86-64, about 10 GB of memory
#
# `make venv` installs with the same commands.

FROM python:3.11-slim-bookworm AS base
ENV PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

# arctic-inference (suffix drafters) comes as source; the compiler stays in this stage.
FROM base AS packages
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv
COPY requirements-cpu.lock .
# Where CPU builds of torch are; another index or a mirror: --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN pip install --no-deps -r requirements-cpu.lock

FROM base
# vLLM's kernels link against libnuma.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 draftpick
COPY --from=packages /opt/venv /opt/venv
RUN --mount=type=bind,target=/src,rw cd /src && pip install --no-deps --no-build-isolation .

USER draftpick
WORKDIR /home/draftpick
# Without a compiler torch cannot compile, so it must not try; the embedded fleet runs eager anyway.
ENV DRAFTPICK_CACHE=/home/draftpick/.cache/draftpick \
    HF_HUB_OFFLINE=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    TORCH_COMPILE_DISABLE=1 \
    VLLM_NO_USAGE_STATS=1
RUN draftpick models --prepare

EXPOSE 8000
HEALTHCHECK --start-period=10m --interval=10s --timeout=5s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
CMD ["draftpick", "serve", "--config", "embedded", "--host", "0.0.0.0"]
