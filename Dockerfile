FROM python:3.13-slim AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# What we need changes seldom: a layer of its own, checked against its hashes.
COPY requirements/build.txt requirements/run.txt requirements/
RUN python -m venv /opt/dispatcher \
    && /opt/dispatcher/bin/pip install --require-hashes -r requirements/run.txt \
    && python -m pip install --require-hashes -r requirements/build.txt

COPY pyproject.toml README.md LICENSE ./
COPY dispatcher dispatcher
COPY handlers handlers
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/dispatcher/bin/pip install --no-deps --no-index /wheels/*.whl \
    && /opt/dispatcher/bin/pip check


FROM python:3.13-slim

# No folder of the day may stand in for an installed package: `handlers` is a common name.
ENV PATH=/opt/dispatcher/bin:$PATH \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    DISPATCHER_STORE=sqlite:////var/lib/dispatcher/dispatcher.db \
    DISPATCHER_RULEBOOK=/etc/dispatcher/handlers.yaml

RUN groupadd --system --gid 10001 dispatcher \
    && useradd --system --uid 10001 --gid dispatcher --home-dir /var/lib/dispatcher --no-create-home dispatcher \
    && install --directory --owner=dispatcher --group=dispatcher --mode=0750 /var/lib/dispatcher

COPY --from=build /opt/dispatcher /opt/dispatcher
COPY config /etc/dispatcher

# By number, so that Kubernetes can tell that it is not root.
USER 10001:10001
WORKDIR /var/lib/dispatcher
VOLUME /var/lib/dispatcher

# SIGTERM drains: give it longer than DISPATCHER_DRAIN_SECONDS (30) before it is killed, `docker stop --time 40`.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=15s --retries=3 CMD ["dispatcher", "doctor", "--quick"]
ENTRYPOINT ["dispatcher"]
CMD ["run"]
