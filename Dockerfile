# bitcrown with its scripts. The image is for CPUs; CUDA is a build argument, and needs a host with NVIDIA's container runtime.
#   docker build -t bitcrown .
#   docker build -t bitcrown:cuda --build-arg TORCH_INDEX= .
#   docker run --rm -v "$PWD:/data" bitcrown run_instance.sh v1 any net.onnx prop.vnnlib out.txt 60
#   docker run --rm --gpus all -v "$PWD:/data" bitcrown:cuda bitcrown verify net.onnx prop.vnnlib
FROM python:3.11-slim-bookworm AS build
# Where torch's wheel comes from: PyPI's (no index named here) brings the CUDA libraries along, 3 GB of them.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Another torch requirement than the tested one, for example --build-arg TORCH='torch==2.12.1'.
ARG TORCH=
COPY . /opt/bitcrown
# Tests of other packages, headers and static libraries are no part of an image.
RUN TORCH="$TORCH" TORCH_INDEX="$TORCH_INDEX" /opt/bitcrown/install_tool.sh v1 \
    && cd /opt/bitcrown/.venv/lib/python3* \
    && rm -rf site-packages/torch/include site-packages/torch/test site-packages/torch/bin/protoc* \
    && find . -name '*.a' -delete \
    && find . -type d \( -path '*/onnx/backend/test/data' -o -path '*/numpy/*/tests' -o -path '*/sympy/*/tests' \
         -o -path '*/networkx/*/tests' \) -prune -exec rm -rf {} +

FROM python:3.11-slim-bookworm
COPY --from=build /opt/bitcrown /opt/bitcrown
ENV PATH=/opt/bitcrown:/opt/bitcrown/.venv/bin:$PATH
RUN useradd --create-home bitcrown && install -d -o bitcrown /data
USER bitcrown
WORKDIR /data
# One bundled instance with a known truth, through the competition's scripts.
HEALTHCHECK --interval=1h --timeout=150s --start-period=10s --retries=1 \
    CMD ["/opt/bitcrown/benchmarks/run.sh", "quickstart", "--filter", "*cartpole*", "--out", "/tmp/health"]
CMD ["bitcrown", "--help"]
