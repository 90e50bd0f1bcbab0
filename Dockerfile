# An image whose entry point is `hybrid-ft launch`:
#   docker build -t me/hybrid-ft .
#   docker run --gpus all --shm-size 8g -v "$PWD:/work" me/hybrid-ft mine.yaml
# Triton compiles with the base's C compiler; the driver is the machine's, CUDA's libraries come with torch.
ARG BASE=python:3.12
FROM ${BASE}
ARG TORCH="torch==2.13.0 triton==3.7.1"
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE __init__.py cli.py errors.py py.typed ./
COPY commands commands
COPY datasets datasets
COPY finetune finetune
COPY hybrid_model hybrid_model
COPY kernels kernels
COPY recipes recipes
RUN pip install --no-cache-dir --root-user-action ignore -c constraints.txt ${TORCH} .
WORKDIR /work
ENTRYPOINT ["hybrid-ft", "launch"]
