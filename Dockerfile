# pgtg on GPUs, from the checkout:
#   docker build -t pgtg .
#   docker run --rm --gpus all -v "$PWD/outputs:/work/outputs" pgtg train summarize
FROM python:3.11-slim
RUN useradd --create-home runner && mkdir -p /work/outputs && chown -R runner /work
WORKDIR /opt/pgtg
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY pgtg pgtg
COPY conf conf
# torch's usual build for Linux is the one for CUDA; no build tools are needed
RUN pip install --no-cache-dir --constraint constraints.txt '.[joblib,slurm]'
USER runner
WORKDIR /work
ENTRYPOINT ["pgtg"]
CMD ["--help"]
