# syntax=docker/dockerfile:1
# vLLM's own image with Ray Serve and Draftpick: for a Ray cluster (deploy/kubernetes, deploy/serve/cluster.yaml), or for
# one machine with a fleet of your own:
#
#   docker build -f deploy/docker/gpu.Dockerfile -t draftpick:gpu .
#   docker run --rm --init --gpus all --shm-size 8g -p 8000:8000 -e HF_TOKEN \
#     -v "$PWD/fleet.yaml:/etc/draftpick/fleet.yaml:ro" draftpick:gpu
#
# Here the requirements come from pyproject.toml, not from the lock, which is for CPUs: the image's torch and vLLM stay.

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
# Older KubeRay operators probe with wget.
RUN apt-get update \
    && apt-get install -y --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 draftpick \
    && install -d -o draftpick -g draftpick /home/draftpick/.cache /var/lib/draftpick
WORKDIR /tmp/requirements
COPY pyproject.toml .
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    python3 -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*project["dependencies"], *project["optional-dependencies"]["gpu"], sep="\n")' > gpu.txt \
    && python3 -m pip install --find-links /wheels -r gpu.txt
RUN --mount=type=bind,target=/src,rw cd /src && python3 -m pip install --no-deps .

USER draftpick
WORKDIR /home/draftpick
ENV HOME=/home/draftpick \
    RAY_USAGE_STATS_ENABLED=0 \
    VLLM_NO_USAGE_STATS=1

EXPOSE 8000
HEALTHCHECK --start-period=30m --interval=10s --timeout=5s --retries=3 \
    CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# The base image starts `vllm serve`.
ENTRYPOINT []
CMD ["draftpick", "serve", "--config", "/etc/draftpick/fleet.yaml", "--host", "0.0.0.0"]
