# The image of every Ray node, the same versions on the driver and on all workers.
#
#   docker build --target cpu -t unmask:cpu .       graders, endpoints of small models, tests
#   docker build --target cuda -t unmask:cuda .     GPUs; the driver comes from the host by the NVIDIA container toolkit
#   docker run --rm --shm-size 8g unmask:cpu doctor
#
# pip's own build of torch carries the CUDA libraries (several GB) and works without a GPU. For a small CPU image give the
# index of PyTorch's CPU wheels, as pytorch.org names it: --build-arg TORCH_INDEX=URL
#
# Continuous integration checks what this file names, and does not build it.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    OMP_NUM_THREADS=1
# bubblewrap: the sandbox of program graders (pods that forbid user namespaces fall back to landlock, which is in the
# kernel). gcc, g++: torch.compile. git: the version in a run's record. procps, wget: Ray's and KubeRay's own checks.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap ca-certificates g++ gcc git procps wget \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 unmask \
    && useradd --uid 1000 --gid 1000 --create-home unmask
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
# What is installed before the code: it changes less often.
RUN python -c "import tomllib; print('\n'.join(tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']))" \
    > /tmp/requirements.txt

FROM base AS cpu-packages
ARG TORCH_INDEX=""
RUN if [ -n "${TORCH_INDEX}" ]; then \
        pip install --index-url "${TORCH_INDEX}" "$(grep '^torch==' /tmp/requirements.txt)"; \
    fi \
    && pip install -r /tmp/requirements.txt

FROM base AS cuda-packages
RUN pip install -r /tmp/requirements.txt
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM cpu-packages AS cpu
COPY --chown=1000:1000 . .
RUN pip install --no-deps -e . && chown 1000:1000 /app
USER 1000:1000
ENTRYPOINT ["unmask"]
CMD ["--help"]

FROM cuda-packages AS cuda
COPY --chown=1000:1000 . .
RUN pip install --no-deps -e . && chown 1000:1000 /app
USER 1000:1000
ENTRYPOINT ["unmask"]
CMD ["--help"]
