#!/usr/bin/env python3
"""What backups cost in S3 each month, by size of the database and schedule, as a Markdown table.

    deploy/scripts/cost.py            prints the table
    deploy/scripts/cost.py --write    puts it between the markers in deploy/README.md
    deploy/scripts/cost.py --check    fails if what stands between the markers is not it

Prices stand in prices.json. Limits and defaults are read from the code, the requests of one backup
stand below; tests/deploy/test_cost.py counts them.
"""

import argparse
import datetime
import json
import math
import re
import sys
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "deploy/README.md"
BEGIN, END = "<!-- cost.py --write: begin -->", "<!-- cost.py --write: end -->"

MIB, GIB = 1 << 20, 1 << 30
DAYS = 30
SIZES = [(10 * MIB, "10 MiB"), (100 * MIB, "100 MiB"), (GIB, "1 GiB"), (10 * GIB, "10 GiB")]
SCHEDULES = [(5, "5 minutes"), (60, "hour"), (1440, "day")]

# How much of a database's size is stored. `lifeboat snapshots` tells the truth about yours.
STORED = 0.5


@dataclass(frozen=True)
class Requests:
    """By what S3 charges for them: writes are PUT, POST and LIST, reads are GET and HEAD."""

    writes: float = 0
    reads: float = 0

    def __add__(self, other):
        return Requests(self.writes + other.writes, self.reads + other.reads)

    def __mul__(self, times):
        return Requests(self.writes * times, self.reads * times)


def number_in(path, pattern):
    """The one number that `pattern` finds in a file of the project, as (a << b) or digits."""
    found = re.findall(pattern, (ROOT / path).read_text())
    if len(found) != 1:
        sys.exit(f"cost.py: {path} has {len(found)} places like {pattern}")
    factor, _, shift = found[0].replace("_", "").partition(" << ")
    return int(factor) << int(shift or 0)


PART_MIN = number_in("src/storage/mod.rs", r"PART_BYTES_MIN: u64 = ([\d_]+ << \d+);")
PARTS_MAX = number_in("src/storage/mod.rs", r"PARTS_MAX: u64 = ([\d_]+);")
PIECE = number_in("src/restore/fetch.rs", r"PIECE_BYTES: u64 = ([\d_]+ << \d+);")
NONCURRENT_DAYS = number_in("deploy/pulumi/config.ts", r'noncurrentDays: \{ default: "(\d+)"')
UNITS = {"secs": 1, "mins": 60, "hours": 3_600}
MERGED_SECONDS = [
    int(count) * UNITS[unit]
    for unit, count in re.findall(r"covers: SignedDuration::from_(\w+)\((\d+)\)", (ROOT / "src/delta/ageing.rs").read_text())
]
DEFAULTS = tomllib.loads((ROOT / "config/default.toml").read_text())


def parts(stored, plain):
    """How many parts a snapshot is uploaded in: `storage::part_bytes`."""
    part = max(PART_MIN, math.ceil(math.ceil(plain / PARTS_MAX) / MIB) * MIB)
    return max(1, math.ceil(stored / part))


def backup(stored, plain):
    """A snapshot that is stored. One of an unchanged database costs nothing: nobody asks S3."""
    count = parts(stored, plain)
    data = 1 if count == 1 else count + 2
    # Written: data, manifest, head. Read: head four times, newest manifest, identity; whether the
    # newest data is there.
    return Requests(writes=data + 2, reads=7)


def proof(stored):
    """Reads a snapshot back: head, manifest, identity, seek table, pieces, the older proof; writes a proof.

    A piece ends with the frame that fills it, so there may be somewhat fewer.
    """
    return Requests(writes=1, reads=5 + math.ceil(stored / PIECE))


def prune(listed, removed):
    """Three listings of a thousand each, every manifest, the head before each removal. DELETE is free."""
    return Requests(writes=3 * math.ceil(listed / 1000), reads=2 + listed + removed)


# Any day at the hour of the prune will do; the table must not change from day to day.
PRUNED_AT = datetime.datetime(
    2026, 6, 17, *reversed([int(field) for field in DEFAULTS["retention"]["prune_schedule"].split()[:2]])
)


def kept(minutes):
    """How many snapshots a prune leaves of an endless row of them."""
    step = datetime.timedelta(minutes=minutes)
    midnight = PRUNED_AT.replace(hour=0, minute=0)
    newest = midnight + (PRUNED_AT - midnight) // step * step
    newest_first = [newest - index * step for index in range(400 * 1440 // minutes)]
    period = {
        "h": lambda at: (at.date(), at.hour),
        "d": lambda at: at.date(),
        "w": lambda at: at.isocalendar()[:2],
        "m": lambda at: (at.year, at.month),
    }
    stay = {at for at in newest_first if PRUNED_AT - at < datetime.timedelta(hours=1)}
    for rule in DEFAULTS["retention"]["keep"].split():
        count, unit = int(rule[:-1]), rule[-1]
        standing = {}
        for at in newest_first:
            standing.setdefault(period[unit](at), at)
        stay.update(sorted(standing.values(), reverse=True)[:count])
    return len(stay)


@dataclass(frozen=True)
class Month:
    """What one month costs, in dollars."""

    snapshots: float
    requests: float
    storage: float
    proofs: float


def captured(interval):
    """A month of deltas, one each `interval` seconds: each is written, read once to be merged, and removed.

    Merged ones likewise, of a minute and of an hour; each is read once more, to be proven.
    """
    merged = sum(1 / max(seconds, interval) for seconds in MERGED_SECONDS)
    each = 1 / interval + merged
    return Requests(writes=each, reads=each + merged) * (86_400 * DAYS)


def dollars(asked, prices):
    return (asked.writes * prices["put_post_list_per_1000"] + asked.reads * prices["get_head_per_1000"]) / 1000


def month(plain, minutes, prices, noncurrent_days=NONCURRENT_DAYS):
    """A database that changes all the time, backed up for more than a year."""
    stored, a_day, stay = plain * STORED, 1440 / minutes, kept(minutes)
    # As many are removed each day as are taken; until the next prune they pile up.
    current = stay + a_day / 2
    # S3 counts whole days, from the midnight after.
    until_midnight = 1 - (PRUNED_AT.hour * 60 + PRUNED_AT.minute) / 1440
    snapshots = current + a_day * (noncurrent_days + until_midnight)
    asked = (backup(stored, plain) * a_day + prune(stay + a_day, a_day) + proof(stored)) * DAYS
    return Month(
        snapshots=snapshots,
        requests=dollars(asked, prices),
        storage=snapshots * stored / GIB * prices["storage_gb_month"],
        proofs=stored * DAYS / GIB * prices["transfer_out_gb"],
    )


def table(prices):
    """The text between the markers."""
    doubt = "" if prices["verified"] else ", which were not checked against AWS's own list"
    rows = [
        "| database | a snapshot every | snapshots in S3 | requests | storage | proofs | together |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for plain, size in SIZES:
        for minutes, name in SCHEDULES:
            cost = month(plain, minutes, prices)
            amounts = (cost.requests, cost.storage, cost.proofs, cost.requests + cost.storage + cost.proofs)
            rows.append(f"| {size} | {name} | {cost.snapshots:,.0f} | {' | '.join(f'{x:,.2f}' for x in amounts)} |")

    often_minutes, often = SCHEDULES[0]
    few = month(GIB, often_minutes, prices, noncurrent_days=1).snapshots
    texts = [
        paragraph(
            f"US dollars a month in {prices['region']}, at prices of {prices['taken']}{doubt}. Counted for a database that "
            f"changes all the time, of whose size {STORED:.0%} is stored, after a year, with the defaults: retention "
            f"`{DEFAULTS['retention']['keep']}`, one prune and one proof a day, and deleted objects kept for "
            f"{NONCURRENT_DAYS} days. While nothing is written, nothing is asked and nothing is stored."
        ),
        "\n".join(rows),
        paragraph(
            "A database that is captured has a snapshot a day. While it is written to all the time, a delta each second "
            f"comes to {captured(1).writes / DAYS:,.0f} writes and as many reads a day beside it, so to "
            f"{dollars(captured(1), prices):,.2f} a month, and one each ten seconds (`BACKUP_INTERVAL`) to "
            f"{dollars(captured(10), prices):,.2f}; while it is not written to, to nothing. What it stores is what is written."
        ),
        paragraph(
            "Most of the storage is what retention deleted and versioning still keeps: at a snapshot every "
            f"{often}, `noncurrentDays` 1 leaves {few:,.0f} snapshots in S3. Proofs are read over the internet, where the "
            f"first {prices['transfer_out_free_gb_month']} GB of an account are free each month. Not counted: what CloudWatch "
            "charges for the alarm and the request metrics, access logs, and a replica, which doubles the storage."
        ),
    ]
    return "\n\n".join(texts)


def paragraph(text):
    return textwrap.fill(text, width=110, break_on_hyphens=False)


def between_markers(readme):
    """What stands before, between and behind the markers."""
    before, begin, rest = readme.read_text().partition(BEGIN)
    between, end, behind = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in behind:
        sys.exit(f"cost.py: {readme} must hold each once, in this order: {BEGIN} {END}")
    return before, between, behind


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true")
    what.add_argument("--check", action="store_true")
    parser.add_argument("--readme", type=Path, default=README, help="the file with the markers")
    options = parser.parse_args()
    text = table(json.loads((Path(__file__).parent / "prices.json").read_text()))
    if not options.write and not options.check:
        print(text)
        return
    before, between, behind = between_markers(options.readme)
    if options.write:
        options.readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{behind}")
    elif between != f"\n{text}\n":
        sys.exit(f"cost.py: the table of costs in {options.readme} is out of date: deploy/scripts/cost.py --write")


if __name__ == "__main__":
    main()
