# syntax=docker/dockerfile:1
# vLLM's own image with Ray Serve and Draftpick: for a Ray cluster (deploy/helm, deploy/serve/cluster.yaml), or for one
# machine with a fleet of your own:
#
#   docker build -f deploy/docker/gpu.Dockerfile -t draftpick:gpu .
#   docker run --rm --init --gpus all --shm-size 8g -p 127.0.0.1:8000:8000 -e HF_TOKEN \
#     -v "$PWD/fleet.yaml:/etc/draftpick/fleet.yaml:ro" draftpick:gpu
#
# What the image has, its torch and vLLM first, stays as it is. What it lacks comes in the lock's versions.

FROM vllm/vllm-openai:v0.29.0 AS base
ENV PIP_BREAK_SYSTEM_PACKAGES=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

# arctic-inference (suffix drafters) comes as source. Its build wants a torch, and the small one will do.
FROM base AS wheels
WORKDIR /wheels
COPY requirements-cpu.lock .
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN python3 -m pip wheel --no-deps "$(grep '^arctic-inference==' requirements-cpu.lock)"

FROM base
# KubeRay's readiness probe of a worker calls wget.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 draftpick \
    && install -d -o draftpick -g draftpick /home/draftpick/.cache /var/lib/draftpick
WORKDIR /tmp/requirements
COPY pyproject.toml requirements-cpu.lock ./
RUN python3 -m pip list --format=freeze > there.txt \
    && sed -E 's/==.*//; s/[_.]/-/g; s/.*/^&==/' there.txt > names.txt \
    && grep -v -i -f names.txt requirements-cpu.lock > lacking.txt
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    python3 -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; extras = project["optional-dependencies"]; wanted = sum((extras[name] for name in ("tracing", "serve", "train", "gpu")), project["dependencies"]); print(*(one for one in wanted if not one.startswith("draftpick[")), sep="\n")' > gpu.txt \
    && python3 -m pip install --find-links /wheels -c lacking.txt -r gpu.txt
RUN --mount=type=bind,target=/src python3 -m pip install --no-deps /src

# By number: Kubernetes cannot tell whether a name is root.
USER 10001:10001
WORKDIR /home/draftpick
ENV HOME=/home/draftpick \
    RAY_USAGE_STATS_ENABLED=0 \
    VLLM_NO_USAGE_STATS=1

EXPOSE 8000
HEALTHCHECK --start-period=30m --interval=10s --timeout=5s --retries=3 \
    CMD ["wget", "-q", "-T", "4", "-O", "/dev/null", "http://127.0.0.1:8000/health"]
# The base image starts `vllm serve`.
ENTRYPOINT []
CMD ["draftpick", "serve", "--config", "/etc/draftpick/fleet.yaml", "--host", "0.0.0.0"]
