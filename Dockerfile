# Two uses: a stage to copy the binary from into an application's own image (deploy/README.md), and a
# sidecar container that shares a volume with the application.
#
# The binary is linked to glibc: it runs on Debian 12 or later, and wherever glibc is 2.34 or later; not
# on Alpine.

FROM rust:1.95-bookworm AS build
WORKDIR /src
# Without tests and documents: a change to those builds nothing anew. .cargo holds a flag SQLite is built with.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
COPY config config
COPY deploy/policies deploy/policies
COPY src src
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --release --bin lifeboat \
    && cp target/release/lifeboat /usr/local/bin/lifeboat \
    && strip --strip-debug /usr/local/bin/lifeboat

FROM debian:bookworm-slim
# TLS trusts what the system trusts.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /var/lib/lifeboat --create-home lifeboat
COPY --from=build /usr/local/bin/lifeboat /usr/local/bin/lifeboat

# SQLite needs the database's directory writable, for -wal and -shm: run as the application's user
# (`docker run --user UID`). On fly.io the binary runs inside the application's image instead, as root, and
# steps the application down to a user of its own (BACKUP_COMMAND_USER).
USER lifeboat
WORKDIR /var/lib/lifeboat
ENV BACKUP_DIR=/var/lib/lifeboat
# The daemon's own probe, with no shell and no curl.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["lifeboat", "health"]
# SIGTERM, the default, takes a last backup: give `docker stop` the time for it (--time 90).
ENTRYPOINT ["lifeboat"]
CMD ["run"]
