# syntax=docker/dockerfile:1
# The server, with the embedded model unless told otherwise:
#
#     docker build -t dualslm .
#     docker run --rm -p 8000:8000 dualslm
#     docker run --rm -p 8000:8000 --gpus all -v models:/models dualslm serve --host 0.0.0.0 --model ORG/ADAPTERS
#
# PyTorch is the package index's, which runs on GPUs and on CPUs; a smaller one for CPUs alone comes with
# --build-arg PIP_EXTRA_INDEX_URL=... Models of the hub are kept in the volume /models.

FROM python:3.11-slim AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
ARG PIP_EXTRA_INDEX_URL
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    set -- /wheels/*.whl \
    && pip install --no-cache-dir -c /constraints.txt "$1[serve]" \
    && useradd --no-create-home --uid 1000 dualslm \
    && install -d -o dualslm /models
ENV HF_HOME=/models PYTHONUNBUFFERED=1
VOLUME /models
USER 1000
EXPOSE 8000
HEALTHCHECK --start-period=5m --interval=30s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["dualslm"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
