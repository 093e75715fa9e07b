# The bench in a container: the wheel of this checkout, with the libraries that it requires.
#
#   docker build -t robustbench-med .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD":/work robustbench-med run quick
#
# The results then belong to you; any user of the host may write to /work and /cache.
#
# By default torch is the build for CUDA (run with --gpus all). For the smaller build without CUDA, name
# the package index of CPU builds that the site of PyTorch states:
#
#   docker build --build-arg TORCH_INDEX=ADDRESS -t robustbench-med .
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY robustbench_med robustbench_med
COPY attacks attacks
COPY defenses defenses
COPY leaderboard leaderboard
RUN pip install --no-cache-dir build && python -m build --wheel --outdir /dist .

FROM python:${PYTHON}-slim
ARG TORCH_INDEX=""
ARG EXTRAS="clinical,datasets,maite,models"
COPY --from=wheel /dist /dist
RUN if [ -n "$TORCH_INDEX" ]; then \
        pip install --no-cache-dir --index-url "$TORCH_INDEX" torch torchvision; \
    fi && \
    pip install --no-cache-dir "$(ls /dist/*.whl)[$EXTRAS]" && \
    rm -r /dist
# the driver of the host, where there is one; a home and a name, which a user of the host has not
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HOME=/cache \
    LOGNAME=bench \
    ROBUSTBENCH_MED_CACHE=/cache \
    MPLCONFIGDIR=/cache/matplotlib
RUN useradd --no-create-home --home-dir /cache bench && mkdir --mode 1777 /cache /work
USER bench
WORKDIR /work
VOLUME ["/work", "/cache"]
ENTRYPOINT ["robustbench-med"]
CMD ["--help"]
