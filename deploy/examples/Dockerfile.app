# Somebody's application, with Lifeboat in front of it: the three lines marked 1, 2 and 3.
# `lifeboat` is the image that this project's Dockerfile makes: docker build -t lifeboat .

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates sqlite3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system app

# 1: the binary
COPY --from=lifeboat /usr/local/bin/lifeboat /usr/local/bin/
# 2: the database; everything else is in fly.toml
ENV BACKUP_DATABASE=/data/app.db
# 3: the application becomes the command behind --. No USER line: Lifeboat starts as root and steps the
# application down to BACKUP_COMMAND_USER.
ENTRYPOINT ["lifeboat", "run", "--"]

# In place of an application: one row a second. Exec form, so that signals arrive.
CMD ["sh", "-c", "while sleep 1; do sqlite3 /data/app.db 'PRAGMA busy_timeout=5000; PRAGMA journal_mode=wal; CREATE TABLE IF NOT EXISTS t(at TEXT); INSERT INTO t VALUES (datetime())' >/dev/null; done"]
