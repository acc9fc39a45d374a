"""The measures of continuous capture: each a function that gives rows."""

import collections
import contextlib
import json
import os
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time

from bench import (
    ROOT, Failed, Row, alternate, assert_same, commit_p99_ms, fresh, make_database, settle, tree_bytes,
    tree_files,
)
from daemons import Appeared, Lifeboat, Litestream, Running
from writer import content

WRITER = ROOT / "benches" / "writer.py"
PROGRAMS = {"lifeboat": Lifeboat, "litestream": Litestream}

# Levels above what is captured: of a minute and an hour here, of 30 seconds, 5 minutes and an hour there. Both programs
# look every 30 seconds.
LEVELS, LITESTREAM_LEVELS, MERGED_WITHIN_SECONDS = 2, 3, 100


# --- what is lost when the machine is ---------------------------------------------------------


def kills(bench):
    wholes = collections.Counter()
    cases = [
        ("200 transactions a second", 0.005, (2, 3), "1s", {"worst": (max, 1.1), "median": (statistics.median, 0.6)}),
        # At any moment between the second transaction and the third.
        ("one transaction every 5 s", 5, (5, 10), "1s", {"worst": (max, 0.3)}),
        ("200 a second, interval 250 ms", 0.005, (2, 3), "250ms", {"worst": (max, 0.45)}),
    ]
    for name, pause, moment, interval, targets in cases:
        moments = {name: spread(bench.extent.kills, *moment) for name in PROGRAMS}

        def killed(program):
            loss, is_whole = kill_both(bench, PROGRAMS[program], pause, moments[program].pop(), interval)
            wholes[program] += is_whole
            return loss

        lost = alternate(bench.extent.kills, **{name: lambda name=name: killed(name) for name in PROGRAMS})
        for which, (of, target) in targets.items():
            what = f"commits lost by a kill of both, {name}: {which}"
            yield Row(what, lost["lifeboat"], "Litestream", lost["litestream"], "at most", target, ratio=False, of=of)
    rounds = bench.extent.kills * len(cases)
    whole = [[wholes[program]] for program in PROGRAMS]
    what = "restored is whole, and a beginning of what was committed"
    yield Row(what, whole[0], "Litestream", whole[1], "at least", rounds, f"of {rounds}", ratio=False, digits=0)


def spread(count, begin, end):
    """Random moments, one in each of as many equal parts of the time, in random order: by chance alone, the median of
    twenty moments anywhere is easily a tenth of the time off.
    """
    part = (end - begin) / count
    moments = [begin + part * (number + random.random()) for number in range(count)]
    random.shuffle(moments)
    return moments


def kill_both(bench, program, pause, seconds, interval):
    """Seconds between the first acknowledged commit that is missing and the kill; whether the rest is right."""
    home = bench.home()
    database, acks, restored = fresh(home / "data") / "app.db", home / "acks", home / "restored.db"
    make_small(database)
    with program(bench, home, [database], interval) as daemon:
        with writing("paced", database, acks, pause) as writer:
            wait_for(lambda: acks.exists() and acks.read_text())
            time.sleep(seconds)
            killed_at = time.time()
            daemon.kill()
            writer.kill()
    shutil.rmtree(database.parent)
    try:
        daemon.restore(restored)
        rows, is_whole = read_small(restored)
    except (Failed, sqlite3.Error) as failure:
        print(f"{daemon.name} restored nothing after a kill: {failure}", flush=True)
        rows, is_whole = 0, False
    acknowledged = [line.split() for line in acks.read_text().splitlines(keepends=True) if line.endswith("\n")]
    missing = [float(at) for number, at in acknowledged if int(number) > rows]
    return max(0, killed_at - min(missing)) if missing else 0.0, is_whole


def read_small(database):
    """How many rows of the writer there are, and whether they are the first ones and all is whole."""
    with contextlib.closing(sqlite3.connect(database)) as shop:
        rows = shop.execute("SELECT id, x FROM written ORDER BY id").fetchall()
        is_whole = shop.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return len(rows), is_whole and all(row == (number, content(number)) for number, row in enumerate(rows, 1))


# --- what the application feels -----------------------------------------------------------------


def latency(bench):
    def p99_ms(program=None):
        home = bench.home()
        database = make_small(home / "app.db")
        with program(bench, home, [database]) if program else contextlib.nullcontext():
            return commit_p99_ms(database, lambda stop: stop.wait(bench.extent.latency_seconds))

    times = alternate(
        bench.extent.latency_rounds,
        without=p99_ms,
        lifeboat=lambda: p99_ms(Lifeboat),
        litestream=lambda: p99_ms(Litestream),
    )
    name = "writer's p99 commit, 200 transactions a second"
    yield Row(name, times["lifeboat"], "the same without", times["without"], "at most", 1.2, "ms", digits=3)
    yield Row(name, times["lifeboat"], "beside Litestream", times["litestream"], "at most", None, "ms", digits=3)


def full_speed(bench):
    seconds = bench.extent.full_speed_seconds
    lifeboat = []

    def alone():
        database = make_small(bench.home() / "app.db")
        return write_flat_out(database, seconds)

    def beside_litestream():
        home = bench.home()
        database = make_small(home / "app.db")
        with Litestream(bench, home, [database]):
            return write_flat_out(database, seconds)

    def beside_lifeboat():
        wrote, seen = write_flat_out_captured(bench, seconds)
        lifeboat.append(seen)
        return wrote

    wrote = alternate(bench.extent.full_speed_rounds, without=alone, lifeboat=beside_lifeboat, litestream=beside_litestream)
    rate = {name: [one["commits"] / one["seconds"] for one in rounds] for name, rounds in wrote.items()}
    beyond = {name: [one["log_bytes"] / 2**20 - 32 for one in rounds] for name, rounds in wrote.items()}
    of_lifeboat = {name: [seen[name] for seen in lifeboat] for name in lifeboat[0]}
    name = f"commits a second, at full speed for {seconds} s"
    yield Row(name, rate["lifeboat"], "the same without", rate["without"], "at least", 0.9, "", digits=0)
    yield Row(name, rate["lifeboat"], "beside Litestream", rate["litestream"], "at least", None, "", digits=0)
    name = f"full speed for {seconds} s:"
    yield Row(f"{name} comparisons of all pages", of_lifeboat["comparisons"], "", [], "at most", 3, "", of=max, digits=0)
    yield Row(f"{name} until less than 2 s behind", of_lifeboat["behind_seconds"], "", [], "at most", 2, of=max)
    what = f"{name} largest log, beyond 32 MiB"
    yield Row(what, beyond["lifeboat"], "Litestream", beyond["litestream"], "at most", 64, "MiB", ratio=False, of=max, digits=0)
    what = f"{name} restored of what was committed"
    yield Row(what, of_lifeboat["restored_percent"], "", [], "at least", 100, "%", of=min)


def write_flat_out(database, seconds):
    with writing("flat-out", database, seconds, output=subprocess.PIPE) as writer:
        return json.loads(writer.process.stdout.read())


def write_flat_out_captured(bench, seconds):
    home = bench.home()
    database, restored = make_small(home / "app.db"), home / "restored.db"
    with Lifeboat(bench, home, [database]) as daemon:
        wrote = write_flat_out(database, seconds)
        ended = time.monotonic()
        wait_for(lambda: daemon.lag_seconds() < 2, within=300)
        behind_seconds = time.monotonic() - ended
        daemon.wait_until_stored()
        comparisons = daemon.total("lifeboat_capture_comparisons_total")
    daemon.restore(restored)
    same = (
        "ATTACH ? AS restored; ",
        "SELECT count(*) FROM main.written JOIN restored.written AS again USING (id) WHERE main.written.x = again.x",
        "SELECT count(*) FROM restored.written",
    )
    with contextlib.closing(sqlite3.connect(database)) as shop:
        shop.execute(same[0], (str(restored),))
        (equal,), (rows,) = (shop.execute(query).fetchone() for query in same[1:])
        is_whole = shop.execute("PRAGMA restored.integrity_check").fetchall() == [("ok",)]
    right = equal if is_whole and equal == rows else 0
    seen = {"comparisons": comparisons, "behind_seconds": behind_seconds, "restored_percent": 100 * right / wrote["commits"]}
    return wrote, seen


# --- what it takes of the store -----------------------------------------------------------------


def one_page_a_second(bench):
    """Both programs at once, each with a database of its own, for bytes do not depend on the time they take.

    What goes into the higher levels of merged deltas is taken to come out of them undiminished, for the time is too
    short to see them all.
    """
    home, seconds = bench.home(), bench.extent.page_seconds
    mine, theirs = make_large(home / "one" / "app.db", bench.extent.page_database_mib), home / "other" / "app.db"
    shutil.copy(mine, fresh(theirs.parent) / theirs.name)
    size = f"{mine.stat().st_size / 1e9:.1f} GB"
    with Lifeboat(bench, home, [mine]) as lifeboat, Litestream(bench, home, [theirs]) as litestream:
        lifeboat.wait_until_quiet(bench.extent.quiet_seconds)
        litestream.wait_until_quiet(bench.extent.quiet_seconds)
        stores = [Appeared(lifeboat.folder), Appeared(litestream.folder)]
        counted, began = -lifeboat.written_bytes(), time.monotonic()
        with writing("change", mine, 1, 1), writing("change", theirs, 1, 1):
            look_for(stores, seconds)
            hours = (time.monotonic() - began) / 3600
        look_for(stores, MERGED_WITHIN_SECONDS)
        counted += lifeboat.written_bytes()
    if counted < 0.99 * stores[0].bytes():
        sys.exit(f"Lifeboat counted {counted:.0f} bytes, and its objects have {stores[0].bytes()}")
    records = max(0, counted - stores[0].bytes())
    in_an_hour = [
        (records + stores[0].bytes("/deltas/0/") + LEVELS * stores[0].bytes("/deltas/1/")) / hours / 1e6,
        (stores[1].bytes("/0000/") + LITESTREAM_LEVELS * stores[1].bytes("/0001/")) / hours / 1e6,
    ]
    what = f"uploaded in an hour, one page a second of {size}; extrapolated to an hour from {seconds} s"
    yield Row(what, in_an_hour[:1], "Litestream", in_an_hour[1:], "at most", 25, "MB", ratio=False)


def look_for(stores, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(1)
        for store in stores:
            store.look()


def moment(bench):
    """Nobody can wait for 23 hours. What makes such a restore long is the weight of the deltas; once they outweigh the
    snapshot, the daemon takes another one. A little less is written here, and merged as it ages.
    """
    home, seconds = bench.home(), bench.extent.moment_seconds
    database, restored = make_database(home / "one" / "app.db", bench.extent.moment_database_mib), home / "restored.db"
    pause = 0.2
    pages = database.stat().st_size / 4096
    rows = max(1, round(0.85 * pages * pause / seconds))
    with Lifeboat(bench, home, [database]) as daemon:
        daemon.wait_until_quiet(bench.extent.quiet_seconds)
        with writing("change", database, pause, rows):
            time.sleep(seconds)
        daemon.wait_until_stored()
        shown_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        captured = daemon.total("lifeboat_capture_deltas_stored_bytes_total")
        deltas = daemon.total("lifeboat_capture_deltas_total")
    snapshots = list(daemon.folder.glob("app/manifests/*.json"))
    if len(snapshots) != 1:
        sys.exit(f"there are {len(snapshots)} snapshots: too much was written for one")
    stored = tree_bytes(daemon.folder / "app" / "snapshots")
    with contextlib.closing(sqlite3.connect(database)) as shop:
        shop.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def restore(*what):
        restored.unlink(missing_ok=True)
        settle()
        return daemon.restore(restored, *what)

    read = json.loads(restore("--json", "--at", shown_at).output)["deltas"]
    assert_same(database, restored)
    times = alternate(
        bench.extent.moment_rounds,
        moment=lambda: restore("--at", shown_at).seconds,
        snapshot=lambda: restore("--snapshot", snapshots[0].stem).seconds,
    )
    what = (
        f"restore to a moment, {captured / 1e6:.0f} MB of deltas upon a snapshot of {stored / 1e6:.0f} MB: "
        f"{deltas:.0f} captured in {seconds} s, {read} read"
    )
    yield Row(what, times["moment"], "that snapshot alone, proven before", times["snapshot"], "at most", 1.5)


# --- many databases -----------------------------------------------------------------------------


def many(bench):
    """First nobody touches them, then each is written now and then."""
    extent = bench.extent
    seen = []
    for program in PROGRAMS.values():
        home = bench.home()
        with program(bench, home, make_many(home / "data", extent.databases)) as daemon:
            daemon.wait_until_quiet(extent.quiet_seconds)
            seen.append(idle(daemon, extent) | busy(daemon, extent, home))

    def row(what, field, target, unit):
        mine, theirs = ([of_program[field]] for of_program in seen)
        return Row(f"{extent.databases} {what}", mine, "Litestream", theirs, "at most", target, unit, ratio=False)

    yield row("idle databases: most memory, the first snapshots included", "VmHWM", 64, "MiB")
    yield row("idle databases: memory", "VmRSS", 64, "MiB")
    yield row("idle databases: share of a core", "cpu", 0.5, "%")
    yield row(f"idle databases: requests in {extent.idle_seconds} s", "idle_requests", 0, "")
    how = "connections kept" if seen[0]["keeps_connections"] else "opened for each transaction"
    name = f"databases, each written every {extent.busy_period_seconds} s, for {extent.busy_seconds} s ({how}):"
    yield row(f"{name} longest from commit to store", "lag", None, "s")
    of_which = ", ".join(f"{operation} {value:.2f}" for operation, value in seen[0]["requests"].items())
    yield row(f"{name} requests for each transaction ({of_which})", "requests_each", 1, "")


def idle(daemon, extent):
    requests, cpu = daemon.requests(), daemon.cpu_seconds()
    time.sleep(extent.idle_seconds)
    share = 100 * (daemon.cpu_seconds() - cpu) / extent.idle_seconds
    memory = {field: daemon.memory_mib(field) for field in ("VmHWM", "VmRSS")}
    return memory | {"cpu": share, "idle_requests": daemon.requests() - requests}


def busy(daemon, extent, home):
    beginnings, period = home / "beginnings", extent.busy_period_seconds
    with writing("many", home / "data", period, beginnings, output=subprocess.PIPE) as writer:
        keeps = json.loads(writer.process.stdout.readline())["keeps_connections"]
        # Each was written once, and what its first transaction left was merged.
        time.sleep(extent.busy_first_seconds)
        before, began = requests_made(daemon), time.time()
        time.sleep(extent.busy_seconds)
        made, ended = requests_made(daemon) - before, time.time()
    time.sleep(5)
    written = [line.split() for line in beginnings.read_text().splitlines()]
    written = [(name, float(at)) for name, at in written if began <= float(at) <= ended]
    each = {operation: made[operation] / len(written) for operation in made}
    return {
        "keeps_connections": keeps,
        "lag": max(stored_after(daemon.captured(name), at) for name, at in written),
        "requests": each,
        "requests_each": sum(each.values()),
    }


def requests_made(daemon):
    if isinstance(daemon, Lifeboat):
        return daemon.requests_by_operation()
    return collections.Counter(all=daemon.requests())


def stored_after(folder, at):
    """Seconds until something appeared in the folder, or until now."""
    appeared = [os.stat(file).st_ctime for file, _ in tree_files(folder)]
    return min((when for when in appeared if when >= at), default=time.time()) - at


# --- databases and writers ----------------------------------------------------------------------


def writing(*arguments, output=subprocess.DEVNULL):
    return Running([sys.executable, WRITER, *arguments], output=output)


def make_small(path):
    with contextlib.closing(sqlite3.connect(path)) as shop:
        shop.execute("PRAGMA journal_mode=wal")
        shop.execute("CREATE TABLE written(id INTEGER PRIMARY KEY, x BLOB)")
    return path


def make_large(path, mib):
    """A tenth of it rows, the rest zeros, which are made quickly and stored small."""
    make_database(path, mib // 10)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as shop:
        shop.execute("CREATE TABLE filler(id INTEGER PRIMARY KEY, x BLOB)")
        shop.execute("BEGIN")
        for _ in range(mib - path.stat().st_size // 2**20):
            shop.execute("INSERT INTO filler(x) VALUES (zeroblob(1 << 20))")
        shop.execute("COMMIT")
        shop.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


def make_many(folder, count):
    fresh(folder)
    databases = [folder / f"d{number:04}.db" for number in range(count)]
    make_small(databases[0])
    for database in databases[1:]:
        shutil.copy(databases[0], database)
    return databases


def wait_for(condition, within=30):
    end = time.monotonic() + within
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"what is waited for did not come within {within} s")
        time.sleep(0.02)


MEASURES = {
    "kills": kills,
    "latency": latency,
    "full-speed": full_speed,
    "one-page": one_page_a_second,
    "moment": moment,
    "many": many,
}
