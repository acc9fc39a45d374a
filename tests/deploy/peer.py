"""moto, a peer that speaks AWS's protocols, on the loopback."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import boto3

ROOT = Path(__file__).resolve().parents[2]
LIFEBOAT = ROOT / "target/debug/lifeboat"

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Moto:
    """A fresh AWS, with a folder of its own; `env` leads programs to it and holds nothing of the developer's."""

    def __init__(self):
        assert shutil.which("moto_server"), "there is no moto_server: `tests/run deploy` installs it"
        self.folder = tempfile.TemporaryDirectory()
        self.home = Path(self.folder.name)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.env = {"PATH": os.environ["PATH"], "HOME": self.folder.name, "AWS_ENDPOINT_URL": self.url, **KEYS}
        self.log = open(self.home / "moto.log", "wb")
        command = ["moto_server", "-H", "127.0.0.1", "-p", str(port)]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/moto-api/", timeout=5).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError("moto_server did not start: " + self.read_log())
                time.sleep(0.1)

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        self.log.close()
        self.folder.cleanup()

    def reset(self):
        request = urllib.request.Request(f"{self.url}/moto-api/reset", method="POST")
        urllib.request.urlopen(request, timeout=30).close()

    def read_log(self):
        return (self.home / "moto.log").read_text()

    def client(self, service):
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
        return boto3.client(service, endpoint_url=self.url, **keys)
