# Image of smmil with CUDA builds of PyTorch; runs on the CPU where there is no GPU.
#
#   docker build --tag smmil .
#   docker run --rm --gpus all --volume "$PWD:/work" --user "$(id -u):$(id -g)" --env HOME=/tmp smmil --help
FROM python:3.11-slim-bookworm AS base
# gcc builds the kernels at first use; Snakemake asks ps
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev procps \
    && rm -rf /var/lib/apt/lists/*
COPY requirements.lock /opt/smmil/
RUN pip install --no-cache-dir --requirement /opt/smmil/requirements.lock

FROM base AS build
WORKDIR /src
COPY . .
# as `make viewer`
RUN npm ci --ignore-scripts --no-audit --no-fund \
    && mkdir -p smmil/view/static/vendor \
    && cp node_modules/openseadragon/build/openseadragon/openseadragon.min.js node_modules/openseadragon/LICENSE.txt \
        smmil/view/static/vendor
RUN python -m build --wheel --no-isolation --outdir /wheel

FROM base
RUN --mount=type=bind,from=build,source=/wheel,target=/wheel \
    pip install --no-cache-dir --no-deps --no-index /wheel/*.whl \
    && useradd --create-home --uid 1000 smmil
USER 1000
WORKDIR /work
ENTRYPOINT ["smmil"]
CMD ["--help"]
