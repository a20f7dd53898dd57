# bitcrown with its scripts, for CPU; on a host with NVIDIA's container runtime the CUDA that torch brings is used too.
#   docker build -t bitcrown .
#   docker run --rm -v "$PWD:/data" bitcrown run_instance.sh v1 any net.onnx prop.vnnlib out.txt 60
FROM python:3.11-slim-bookworm
# Another torch requirement than the tested one, for example --build-arg TORCH='torch==2.12.1'.
ARG TORCH=
COPY . /opt/bitcrown
RUN TORCH="$TORCH" /opt/bitcrown/install_tool.sh v1 && rm -rf /root/.cache /var/lib/apt/lists/*
ENV PATH=/opt/bitcrown:/opt/bitcrown/.venv/bin:$PATH
RUN useradd --create-home bitcrown && install -d -o bitcrown /data
USER bitcrown
WORKDIR /data
CMD ["bitcrown", "--help"]
