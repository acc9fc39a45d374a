"""What captures, as running processes: Lifeboat and Litestream, with the same few verbs."""

import collections
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request

from bench import clean_environment, free_port, run, tree_files

READY_WITHIN_SECONDS, REST_WITHIN_SECONDS = 600, 120


class Running:
    """A process from the beginning of its block to the end, where it is killed if nobody did so before."""

    def __init__(self, command, environment=None, output=subprocess.DEVNULL):
        self.command, self.environment = [str(part) for part in command], environment or clean_environment()
        self.output = output

    def __enter__(self):
        self.process = subprocess.Popen(self.command, env=self.environment, stdout=self.output)
        return self

    def __exit__(self, *_):
        self.kill()

    def kill(self):
        self.process.kill()
        self.process.wait()


class Daemon(Running):
    """A program that captures the databases; its block begins when it does."""

    def __init__(self, bench, home, command, environment):
        super().__init__(command, environment)
        self.bench, self.log_path = bench, pathlib.Path(home) / f"{self.name}.log"

    def __enter__(self):
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(self.command, env=self.environment, stdout=log, stderr=log)
        try:
            self.wait_until_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def wait_until_ready(self):
        end = time.monotonic() + READY_WITHIN_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                sys.exit(f"{self.name} ended with {self.process.returncode}:\n{self.log_path.read_text()[-3000:]}")
            if self.is_ready():
                return
            time.sleep(0.1)
        sys.exit(f"{self.name} was not ready in time:\n{self.log_path.read_text()[-3000:]}")

    def wait_until_quiet(self, seconds):
        """Until it asked nothing of the store for so long; who never comes to rest is measured as it is."""
        asked, since = -1, time.monotonic()
        for _ in range(REST_WITHIN_SECONDS):
            now = self.requests()
            if now != asked:
                asked, since = now, time.monotonic()
            elif time.monotonic() - since > seconds:
                return
            time.sleep(1)

    def cpu_seconds(self):
        # After the name in brackets, which may hold anything: user and system time are the 12th and 13th.
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mib(self, field):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)[1]) / 1024

    def ask(self, path):
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=20) as answer:
            return answer.read().decode()

    def samples(self, metric):
        """The labels and the value of each sample of a metric."""
        for line in self.ask("/metrics").splitlines():
            if found := re.fullmatch(rf"{metric}(?:{{(.*)}})? (\S+)", line):
                yield found[1] or "", float(found[2])

    def total(self, metric):
        return sum(value for _, value in self.samples(metric))


class Lifeboat(Daemon):
    name = "lifeboat"

    def __init__(self, bench, home, databases, interval="1s"):
        self.folder = bench.next_prefix(self.name)
        self.address = f"127.0.0.1:{free_port()}"
        self.scratch = pathlib.Path(home) / "scratch"
        settings = {
            "BACKUP_CAPTURE": "true",
            "BACKUP_INTERVAL": interval,
            "BACKUP_HTTP_ADDR": self.address,
            "BACKUP_LOG": "warn",
        }
        environment = bench.to_s3(",".join(map(str, databases)), self.scratch) | settings
        super().__init__(bench, home, [bench.lifeboat, "run"], environment)

    def is_ready(self):
        try:
            self.ask("/ready")
            return True
        except (urllib.error.HTTPError, OSError):
            return False

    def lag_seconds(self):
        return max(lag for _, lag in self.samples("lifeboat_capture_lag_seconds"))

    def wait_until_stored(self):
        """Until what was committed by now is in storage. A watcher may tell of it a moment later."""
        time.sleep(1.5)
        while self.lag_seconds() > 0:
            time.sleep(0.1)

    def requests_by_operation(self):
        requests = collections.Counter()
        for labels, value in self.samples("lifeboat_storage_requests_total"):
            requests[re.search(r'operation="([^"]*)"', labels)[1]] += value
        return requests

    def requests(self):
        return self.requests_by_operation().total()

    def written_bytes(self):
        moved = self.samples("lifeboat_storage_transferred_bytes_total")
        return sum(value for labels, value in moved if labels == 'direction="written"')

    def captured(self, name):
        """The folder of what was captured of a database, before anything is merged."""
        return self.folder / name / "deltas" / "0"

    def restore(self, output, *arguments):
        """From the store alone, as on another machine."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        return self.command_line("restore", *arguments, "--output", output)

    def command_line(self, *arguments):
        return run([self.bench.lifeboat, *map(str, arguments)], self.environment | {"BACKUP_LOG": "error"})


class Litestream(Daemon):
    name = "litestream"

    def __init__(self, bench, home, databases, interval="1s"):
        self.folder = bench.next_prefix(self.name)
        self.address = f"127.0.0.1:{free_port()}"
        self.database = databases[0]
        several = len(databases) > 1
        below = [(path, f"/{pathlib.Path(path).stem}" if several else "") for path in databases]
        head = f'addr: "{self.address}"\nlogging:\n  level: warn\n'
        self.config = bench.litestream_config(below, head, interval)
        self.replicas = [self.folder / where.strip("/") for _, where in below]
        command = [bench.peer("litestream"), "replicate", "-config", self.config]
        super().__init__(bench, home, command, clean_environment())

    def is_ready(self):
        """All databases are in the store once."""
        self.replicas = [folder for folder in self.replicas if not any(folder.rglob("*.ltx"))]
        return not self.replicas

    def requests(self):
        return self.total("litestream_replica_operation_total")

    def captured(self, name):
        return self.folder / name / "0000"

    def restore(self, output):
        command = [self.bench.peer("litestream"), "restore", "-config", self.config, "-o", output, self.database]
        return run(command, clean_environment())


class Appeared:
    """The objects that appear below a folder of the store from now on, also those that go again."""

    def __init__(self, folder):
        self.folder, self.sizes = folder, {}
        self.before = {file for file, _ in tree_files(folder)}

    def look(self):
        for file, size in tree_files(self.folder):
            # The server gives what it is still writing another name.
            if file not in self.before and ".partial" not in file:
                self.sizes[file] = size

    def bytes(self, among=""):
        return sum(size for file, size in self.sizes.items() if among in file)
