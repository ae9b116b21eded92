# syntax=docker/dockerfile:1
# Two images of this checkout, without secrets and without root. docs/kuberay.md shows them at work.
#
#   docker build --target job -t registry.example/medret-job:0.1.0 .         indexes: Ray, torch with CUDA, faiss-gpu
#   docker build --target search -t registry.example/medret-search:0.1.0 .   searches by volume: no torch, no Ray
#
# Both serve too (docs/serving.md). The libraries are a layer of their own, which a change of medret's code leaves in the
# cache. For further models, add `--extra dreamsim` or `--extra hf` where `job-libraries` has `--extra job`.

FROM python:3.11.14-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 \
    PATH=/opt/venv/bin:$PATH
RUN groupadd --gid 1000 medret \
    && useradd --uid 1000 --gid medret --create-home medret
WORKDIR /opt/medret

FROM base AS installer
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    VIRTUAL_ENV=/opt/venv
RUN pip install --no-cache-dir uv==0.13.9 \
    && uv venv /opt/venv
COPY pyproject.toml constraints.txt ./

FROM installer AS job-libraries
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --constraint constraints.txt --requirement pyproject.toml --extra job --extra s3 --extra ray-serve
COPY README.md LICENSE ./
COPY medret medret
RUN uv pip install --no-cache --no-deps --build-constraints constraints.txt .

FROM installer AS search-libraries
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --constraint constraints.txt --requirement pyproject.toml --extra search --extra s3 --extra serve
COPY README.md LICENSE ./
COPY medret medret
RUN uv pip install --no-cache --no-deps --build-constraints constraints.txt .

FROM base AS search
COPY --from=search-libraries /opt/venv /opt/venv
USER 1000:1000
ENTRYPOINT ["medret"]
CMD ["--help"]

# The last stage: what `docker build .` makes. Ray's containers replace the entry point by `ray start`.
FROM base AS job
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=job-libraries /opt/venv /opt/venv
COPY jobs jobs
USER 1000:1000
ENTRYPOINT ["medret"]
CMD ["--help"]
