# One image with two entry points: `tollhouse` (gateways) and `tollhouse-operator`.
#
#   docker build -t tollhouse .                    or: make image
#
# BASE needs Python 3.11 or newer with venv. RUNTIME may be a smaller image, such as a distroless one, whose
# Python is of the same version and at the same path as BASE's; nothing in it needs a shell.
ARG BASE=docker.io/library/python:3.13-slim-bookworm
ARG RUNTIME=${BASE}

# hadolint ignore=DL3006
FROM ${BASE} AS build
# Known to this stage alone. Where a proxy signs with a CA of its own, mount its certificates here.
ARG PIP_CERT=/etc/ssl/certs/ca-certificates.crt
ARG SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
ENV UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never
WORKDIR /src
COPY requirements-build.lock requirements.lock ./
RUN python3 -m venv /build \
 && /build/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check \
      --require-hashes --only-binary :all: -r requirements-build.lock \
 && /build/bin/uv venv --quiet --python "$(command -v python3)" /opt/tollhouse \
 && /build/bin/uv pip sync --quiet --python /opt/tollhouse/bin/python --compile-bytecode \
      --require-hashes --only-binary :all: requirements.lock
# The operator works on plain manifests: the client's generated models are never loaded, so their bytecode,
# 60 MB of it, would only be carried around.
RUN for part in client/models client/api aio/client/models aio/client/api; do \
      rm -r /opt/tollhouse/lib/python3.*/site-packages/kubernetes/$part/__pycache__; done
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
COPY operator operator
# The wheel is built by what requirements-build.lock pins, outside of what is shipped.
RUN /build/bin/python -m hatchling build -t wheel -d /dist \
 && /build/bin/uv pip install --quiet --python /opt/tollhouse/bin/python --compile-bytecode \
      --no-deps --no-index /dist/*.whl

# hadolint ignore=DL3006
FROM ${RUNTIME}
LABEL org.opencontainers.image.title="tollhouse" \
      org.opencontainers.image.description="A Kubernetes-native LLM gateway" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/tollhouse /opt/tollhouse
# The root file system may be read-only: bytecode is compiled already, and only TMPDIR is written to.
ENV PATH=/opt/tollhouse/bin:/usr/local/bin:/usr/bin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /
EXPOSE 8080 9090
ENTRYPOINT ["tollhouse"]
CMD ["--help"]
