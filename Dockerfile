# The image for Ray nodes: the same versions on the driver and on every worker. Not built in continuous integration.
# pip takes torch's default build, which carries the CUDA libraries; a CPU-only image installs a CPU build of the same
# version before the other requirements.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    # Inside a closed container network; set RAY_AUTH_MODE=token on a shared one (README, Troubleshooting).
    RAY_AUTH_MODE=disabled

RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential git bubblewrap \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
# The dependencies alone first: they change less often than the code.
RUN python -c "import tomllib; print('\n'.join(tomllib.load(open('pyproject.toml','rb'))['project']['dependencies']))" > /tmp/requirements.txt \
    && pip install -r /tmp/requirements.txt

COPY . .
RUN pip install --no-deps -e . \
    && useradd --create-home unmask \
    && chown -R unmask /app
USER unmask

ENTRYPOINT ["unmask"]
CMD ["--help"]
