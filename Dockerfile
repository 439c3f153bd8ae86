# Two images: `make image` (CUDA) and `make image TARGET=cpu`. Both run as a user without rights, with the versions of
# requirements.lock. The source is in the image; `voxray submit` sends the one of the checkout instead.
FROM python:3.11-slim-bookworm AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# rsync, ssh and procps: Ray's cluster launcher asks for them inside the container.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client procps rsync tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 --shell /bin/bash voxray
ENV PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1 \
    RAY_AUTH_MODE=token
RUN python -m venv /opt/venv && chown -R voxray:voxray /opt/venv

# torch's default build brings CUDA's libraries; the driver comes from the host.
FROM base AS cuda-packages
COPY requirements.lock /tmp/requirements.lock
RUN pip install --requirement /tmp/requirements.lock

# The same versions without CUDA: torch and torchvision from the index of CPU builds, what only CUDA needs left out.
FROM base AS cpu-packages
COPY requirements.lock /tmp/requirements.lock
RUN grep --extended-regexp '^torch(vision)?==' /tmp/requirements.lock > /tmp/torch.lock \
    && grep --extended-regexp --invert-match '^(torch|torchvision|triton|nvidia-.*|cuda-.*)==' /tmp/requirements.lock > /tmp/rest.lock \
    && pip install --requirement /tmp/torch.lock --index-url https://download.pytorch.org/whl/cpu \
    && pip install --requirement /tmp/rest.lock

FROM cpu-packages AS cpu
WORKDIR /opt/voxray
COPY --chown=voxray:voxray . .
RUN pip install --no-deps --no-build-isolation --editable .
USER 1000
ENTRYPOINT ["tini", "--"]
CMD ["voxray", "doctor"]

FROM cuda-packages AS cuda
WORKDIR /opt/voxray
COPY --chown=voxray:voxray . .
RUN pip install --no-deps --no-build-isolation --editable .
USER 1000
ENTRYPOINT ["tini", "--"]
CMD ["voxray", "doctor"]
