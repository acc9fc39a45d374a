"""From the machine's token to the object in the bucket and back: the real program, with moto as IAM, STS and S3.

moto checks every request's signature against the credentials it handed out, and its rights against the role's
policy, so what is tried here is also that deploy/policies/role-policy.json is enough for all that Lifeboat does.
"""

import base64
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
import unittest
import urllib.request
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingMixIn, UnixStreamServer

from botocore.exceptions import ClientError
from peer import LIFEBOAT, ROOT, Moto

ACCOUNT = "123456789012"
BUCKET, REGION = "6-disc-changer-dev-sqlite-backups", "us-west-2"
ROLE = "six-disc-changer-backup-restore-dev"
ORG, APP = "acme", "six-disc-changer-dev"

# What the role itself may never do: moto answers 403 to it, like AWS.
DENIED = 6

# An application that looks at what it was started on.
COUNT = "import sqlite3; print(sqlite3.connect('app.db').execute('SELECT count(*) FROM t').fetchone()[0])"


def policy(name, prefix=""):
    text = (ROOT / "deploy/policies" / f"{name}.json").read_text()
    values = {"partition": "aws", "account": ACCOUNT, "org": ORG, "app": APP, "bucket": BUCKET, "prefix": prefix}
    for key, value in values.items():
        text = text.replace("{{%s}}" % key, value)
    assert "{{" not in text, text
    document = json.loads(text)
    # moto knows no conditions and would take a prohibition under one for a prohibition.
    document["Statement"] = [s for s in document["Statement"] if s["Effect"] == "Allow" or "Condition" not in s]
    return json.dumps(document)


def token(**changes):
    """A token as fly.io makes them, but for its signature."""
    now = int(time.time())
    claims = {
        "iss": f"https://oidc.fly.io/{ORG}",
        "sub": f"{ORG}:{APP}:quiet-cloud-9972",
        "aud": "sts.amazonaws.com",
        "iat": now,
        "exp": now + 600,
        **changes,
    }
    parts = [{"alg": "RS256", "typ": "JWT"}, claims]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, "c2lnbmF0dXJl"])


class Machine(ThreadingMixIn, UnixStreamServer):
    """The socket through which a machine of fly.io speaks to its host."""

    daemon_threads = True

    def __init__(self, path):
        self.asked = []
        super().__init__(str(path), Answer)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers["Content-Type"], json.loads(body)))
        text = (token() + "\n").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def address_string(self):
        return "the machine"

    def log_message(self, *_):
        pass


class FromTheTokenToTheObject(unittest.TestCase):
    def setUp(self):
        assert LIFEBOAT.exists(), f"there is no {LIFEBOAT}: cargo build"
        self.moto = Moto()
        self.addCleanup(self.moto.close)
        self.home = self.moto.home
        self.infrastructure()
        self.machine = Machine(self.home / "api")
        self.addCleanup(self.machine.server_close)
        self.addCleanup(self.machine.shutdown)
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "BACKUP_DATABASE": str(self.home / "app.db"),
            "BACKUP_DIR": str(self.home / "scratch"),
            "BACKUP_USE_AWS": "true",
            "BACKUP_S3_BUCKET": BUCKET,
            "BACKUP_MACHINE_SOCKET": str(self.home / "api"),
            "BACKUP_RETENTION": "1l",
            "BACKUP_PRUNE_SAFETY_AGE": "0s",
            "AWS_REGION": REGION,
            "AWS_ROLE_ARN": f"arn:aws:iam::{ACCOUNT}:role/{ROLE}",
            # moto stands for AWS; only that a bucket's name is no host here.
            "AWS_ENDPOINT_URL_S3": self.moto.url,
            "BACKUP_S3_PROVIDER": "aws",
            "BACKUP_S3_PATH_STYLE": "true",
            "AWS_ENDPOINT_URL_STS": self.moto.url,
        }
        self.database = sqlite3.connect(self.home / "app.db")
        self.database.execute("PRAGMA journal_mode=wal")
        self.database.execute("CREATE TABLE t(x BLOB)")
        self.write(20)

    def infrastructure(self):
        """What deploy/pulumi makes, from the same policy files; from then on moto enforces them."""
        iam, s3 = self.moto.client("iam"), self.moto.client("s3")
        s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
        iam.create_open_id_connect_provider(Url=f"https://oidc.fly.io/{ORG}", ClientIDList=["sts.amazonaws.com"])
        iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument=policy("fly-trust-policy"))
        iam.put_role_policy(RoleName=ROLE, PolicyName="backups", PolicyDocument=policy("role-policy"))

    def enforce(self, after="1"):
        """From the next request but one on: the first is the exchange of the token, which nobody signs."""
        headers = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{self.moto.url}/moto-api/reset-auth", data=after.encode(), headers=headers)
        urllib.request.urlopen(request, timeout=30).close()

    def write(self, rows):
        """So many megabytes that do not compress; more than one part of an upload with 20."""
        self.database.executemany("INSERT INTO t VALUES (randomblob(1000000))", [()] * rows)
        self.database.commit()

    def lifeboat(self, *arguments, code=0, enforced=True, **env):
        self.enforce("1" if enforced else "inf")
        done = subprocess.run(
            [LIFEBOAT, *arguments], env={**self.env, **env}, cwd=self.home, capture_output=True, text=True, timeout=120
        )
        self.assertEqual(done.returncode, code, f"{arguments}: {done.stdout}{done.stderr}{self.moto.read_log()[-3000:]}")
        return done.stdout

    def give(self, rights):
        """Gives the role these rights in place of its own, None for none at all; with enforcement off."""
        self.enforce("inf")
        iam = self.moto.client("iam")
        iam.delete_role_policy(RoleName=ROLE, PolicyName="backups")
        if rights is not None:
            iam.put_role_policy(RoleName=ROLE, PolicyName="backups", PolicyDocument=policy(rights))

    def test_without_its_policy_the_role_can_do_nothing(self):
        """So what the other tests see enforced is enforced."""
        self.give(None)
        self.lifeboat("backup", code=DENIED)

    def test_the_append_only_role_adds_and_restores_and_removes_nothing(self):
        self.lifeboat("backup")
        self.give("append-only-policy")
        self.write(1)
        self.lifeboat("backup")
        self.lifeboat("verify")
        printed = self.lifeboat("prune", "--apply")
        self.assertIn("storage refused to delete", printed)
        self.assertEqual(len(json.loads(self.lifeboat("snapshots", "--json"))["snapshots"]), 2)
        self.lifeboat("restore", "--output", str(self.home / "back.db"))

    def test_the_role_for_drills_restores_and_writes_nothing(self):
        self.lifeboat("backup")
        self.give("read-only-policy")
        self.write(1)
        self.database.close()
        daemon = {"BACKUP_HTTP_ADDR": "off", "BACKUP_ON_SHUTDOWN": "false", "BACKUP_RESTORE_ON_BOOT": "always"}
        schedules = {f"BACKUP_{name}SCHEDULE": "off" for name in ("", "VERIFY_", "PRUNE_")}
        self.assertEqual(self.lifeboat("run", "--", sys.executable, "-c", COUNT, **daemon, **schedules), "20\n")
        self.lifeboat("backup", code=DENIED)

    def test_a_machine_on_a_new_volume_starts_on_what_the_last_one_left(self):
        """The token from the file this time, as where the socket is root's and Lifeboat is not."""
        (self.home / "token").write_text(token())
        file = {"BACKUP_MACHINE_SOCKET": "off", "AWS_WEB_IDENTITY_TOKEN_FILE": str(self.home / "token")}
        daemon = {**file, "BACKUP_HTTP_ADDR": "off", "BACKUP_SCHEDULE": "off", "BACKUP_RESTORE_ON_BOOT": "if-missing"}
        self.write(1)
        # Nothing asked for this backup: it is the one on the way out.
        self.lifeboat("run", "--", "true", **daemon)
        self.database.close()
        for path in self.home.glob("app.db*"):
            path.unlink()
        printed = self.lifeboat("run", "--", sys.executable, "-c", COUNT, **daemon)
        self.assertEqual(printed, "21\n")
        self.assertEqual(self.machine.asked, [])

    def test_the_doctor_finds_nothing_wrong_and_prints_the_policies_that_were_applied(self):
        self.lifeboat("backup")
        # More than one exchange: moto cannot tell them apart.
        checks = json.loads(self.lifeboat("doctor", "--json", enforced=False))["checks"]
        found = {check["name"]: check for check in checks}
        for name in ["identity.token", "identity.role", "storage.put", "storage.delete", "restore.newest"]:
            self.assertEqual(found[name]["status"], "ok", found[name])
        documents = [check["document"] for check in checks if "document" in check]
        for name in ["fly-trust-policy", "role-policy"]:
            self.assertIn(json.loads(policy(name)), documents)

    def test_back_up_prove_prune_and_restore(self):
        first = json.loads(self.lifeboat("backup", "--json"))["snapshot"]["id"]
        self.write(1)
        second = json.loads(self.lifeboat("backup", "--json"))["snapshot"]["id"]
        self.lifeboat("verify")
        self.assertIn("removed 1 snapshot", self.lifeboat("prune", "--apply"))
        listed = [snapshot["id"] for snapshot in json.loads(self.lifeboat("snapshots", "--json"))["snapshots"]]
        self.assertEqual(listed, [second])
        self.assertNotEqual(first, second)
        self.lifeboat("restore", "--output", str(self.home / "back.db"))
        self.database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.assertEqual((self.home / "back.db").read_bytes(), (self.home / "app.db").read_bytes())
        path, content_type, body = self.machine.asked[0]
        self.assertEqual((path, content_type), ("/v1/tokens/oidc", "application/json"))
        self.assertEqual(body, {"aud": "sts.amazonaws.com"})


if __name__ == "__main__":
    unittest.main()
