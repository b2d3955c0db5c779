# syntax=docker/dockerfile:1
# The embedded fleet on CPUs: real vLLM engines, router, models. Nothing is downloaded when it runs.
#
#   docker build -f deploy/docker/cpu.Dockerfile -t draftpick:cpu .
#   docker run --rm --init --shm-size 2g -p 127.0.0.1:8000:8000 draftpick:cpu    # x86-64, about 10 GB of memory
#
# With --read-only it needs --tmpfs /tmp --tmpfs /home/draftpick:uid=10001. `make venv` installs with the same commands.

FROM python:3.11.14-slim-bookworm AS base
ENV PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

# arctic-inference (suffix drafters) comes as source; the compiler stays in this stage.
FROM base AS packages
WORKDIR /build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv
COPY requirements-cpu.lock .
# Where CPU builds of torch are; another index or a mirror: --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN pip install --no-deps -r requirements-cpu.lock

FROM base
# vLLM's kernels link against libnuma. KubeRay's readiness probe of a worker calls wget, and starts Ray in a login shell,
# which forgets PATH. Debian keeps only the newest version of a package, so none is named.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libnuma1 wget \
    && rm -rf /var/lib/apt/lists/* \
    && echo "PATH=$PATH" > /etc/profile.d/draftpick.sh \
    && useradd --create-home --uid 10001 draftpick \
    && install -d -o draftpick -g draftpick /opt/draftpick /var/lib/draftpick
COPY --from=packages /opt/venv /opt/venv
RUN --mount=type=bind,target=/src pip install --no-deps --no-build-isolation /src /src/engines/drafters/weights

# By number: Kubernetes cannot tell whether a name is root.
USER 10001:10001
WORKDIR /home/draftpick
# The target lies outside of the home folder, over which a volume may be mounted. Without a compiler torch cannot compile,
# so it must not try; the embedded fleet runs eager anyway.
ENV DRAFTPICK_CACHE=/opt/draftpick \
    HF_HUB_OFFLINE=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    TORCH_COMPILE_DISABLE=1 \
    VLLM_NO_USAGE_STATS=1
RUN draftpick models --prepare

EXPOSE 8000
HEALTHCHECK --start-period=10m --interval=10s --timeout=5s --retries=3 \
    CMD ["wget", "-q", "-T", "4", "-O", "/dev/null", "http://127.0.0.1:8000/health"]
CMD ["draftpick", "serve", "--config", "embedded", "--host", "0.0.0.0"]
