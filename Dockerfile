# Two images from one file: `api` serves HTTP and has no torch, `worker` trains.
# docker build --target api .    docker build --target worker .

FROM python:3.11.14-slim-bookworm AS base

# Both images share the number of the user, because they share the files in the volume.
RUN useradd --uid 10001 --create-home lorad \
    && install --directory --owner lorad --group lorad /data
ENV LORAD_HOME=/data \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/lorad
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app app
COPY worker worker
COPY migrations migrations
VOLUME /data


FROM base AS api

RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt -e .
USER lorad
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "from http.client import HTTPConnection; c = HTTPConnection('127.0.0.1:8000', timeout=4); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["lorad", "serve", "--host", "0.0.0.0", "--port", "8000"]


FROM base AS worker

# The index that pip uses by default has the CUDA build of torch for Linux.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt -e '.[worker]'
USER lorad
CMD ["lorad", "worker"]
