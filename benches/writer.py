#!/usr/bin/env python3
"""The applications whose writing is captured, each a process of its own that can be killed.

Usage: benches/writer.py paced DATABASE ACKS PAUSE     one row a transaction, acknowledged in the file ACKS
       benches/writer.py flat-out DATABASE SECONDS     one row a transaction, as fast as it goes
       benches/writer.py change DATABASE PAUSE ROWS    rows of `events` anywhere in it, ROWS a transaction
       benches/writer.py many FOLDER PERIOD BEGINNINGS each database in FOLDER once in PERIOD seconds; the file
                                                       BEGINNINGS has its name, and when the transaction began

What has something to tell prints it as one line of JSON.
"""

import itertools
import json
import os
import pathlib
import random
import resource
import sqlite3
import sys
import time

# Descriptors of one connection: database, log, shared memory; and those of Python itself.
DESCRIPTORS_EACH, DESCRIPTORS_SPARE = 3, 100


def main():
    kind, *arguments = sys.argv[1:]
    {"paced": paced, "flat-out": flat_out, "change": change, "many": many}[kind](*arguments)


def content(number):
    """What row `number` holds, so that a restored one can be told to be right."""
    return f"{number} " * 20


def paced(database, acks, pause):
    """A line is in ACKS after its commit, with the time; it outlives a kill."""
    shop = opened(database)
    acknowledged = os.open(acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number, _ in enumerate(ticks(float(pause)), 1):
        shop.execute("INSERT INTO written VALUES (?, ?)", (number, content(number)))
        os.write(acknowledged, f"{number} {time.time():.6f}\n".encode())


def flat_out(database, seconds):
    shop, log = opened(database), f"{database}-wal"
    # Drawn before, for they would take longer than the commit.
    texts = itertools.cycle([random.randbytes(50).hex() for _ in range(100_000)])
    began = time.monotonic()
    number = log_bytes = 0
    while time.monotonic() - began < float(seconds):
        for text in itertools.islice(texts, 500):
            number += 1
            shop.execute("INSERT INTO written VALUES (?, ?)", (number, text))
        log_bytes = max(log_bytes, os.stat(log).st_size)
    took = time.monotonic() - began
    print(json.dumps({"commits": number, "seconds": took, "log_bytes": log_bytes}), flush=True)
    # The log stays as it is: a close would fold it in.
    os._exit(0)


def change(database, pause, rows):
    shop = opened(database)
    (highest,) = shop.execute("SELECT max(id) FROM events").fetchone()
    for _ in ticks(float(pause)):
        shop.execute("BEGIN IMMEDIATE")
        for _ in range(int(rows)):
            row = (random.randbytes(24), random.randint(1, highest))
            shop.execute("UPDATE events SET body = ? WHERE id = ?", row)
        shop.execute("COMMIT")


def many(folder, period, beginnings):
    databases = sorted(pathlib.Path(folder).glob("*.db"))
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    keeps = most == resource.RLIM_INFINITY or len(databases) * DESCRIPTORS_EACH + DESCRIPTORS_SPARE <= most
    shops = {path: opened(path) for path in databases} if keeps else {}
    print(json.dumps({"keeps_connections": keeps}), flush=True)
    began = open(beginnings, "a", buffering=1)
    for turn, _ in enumerate(ticks(float(period) / len(databases))):
        path = databases[turn % len(databases)]
        shop = shops.get(path) or opened(path)
        began.write(f"{path.stem} {time.time():.6f}\n")
        shop.execute("INSERT INTO written(x) VALUES (?)", (content(turn),))
        if not keeps:
            shop.close()


def opened(database):
    shop = sqlite3.connect(database, isolation_level=None, timeout=30)
    shop.execute("PRAGMA synchronous=normal")
    return shop


def ticks(pause):
    """Something to do every `pause` seconds, now first; what was missed is made up for."""
    due = time.monotonic()
    while True:
        yield
        due += pause
        time.sleep(max(0, due - time.monotonic()))


if __name__ == "__main__":
    main()
