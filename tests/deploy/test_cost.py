"""deploy/scripts/cost.py: its requests counted on a real backup, its sums by hand, its place in the README."""

import contextlib
import json
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request
from pathlib import Path

from peer import LIFEBOAT, ROOT, Moto, free_port

SCRIPT = ROOT / "deploy/scripts/cost.py"
sys.path.insert(0, str(SCRIPT.parent))
import cost  # noqa: E402

PRICES = {
    "region": "us-east-1",
    "taken": "2026-01-01",
    "verified": False,
    "storage_gb_month": 1,
    "put_post_list_per_1000": 1000,
    "get_head_per_1000": 1,
    "transfer_out_gb": 1,
    "transfer_out_free_gb_month": 100,
}


class Counted(unittest.TestCase):
    """What one backup and one proof ask of S3, seen from the other side."""

    @classmethod
    def setUpClass(cls):
        assert LIFEBOAT.exists(), f"there is no {LIFEBOAT}: cargo build"
        cls.moto = Moto()
        cls.addClassCleanup(cls.moto.close)
        cls.moto.client("s3").create_bucket(Bucket="backups")
        cls.database = cls.moto.home / "app.db"
        cls.write(20)
        port = free_port()
        cls.http = f"http://127.0.0.1:{port}"
        env = {
            **{name: value for name, value in cls.moto.env.items() if name != "AWS_ENDPOINT_URL"},
            "AWS_ENDPOINT_URL_S3": cls.moto.url,
            "BACKUP_DATABASE": str(cls.database),
            "BACKUP_S3_BUCKET": "backups",
            "BACKUP_DIR": str(cls.moto.home / "scratch"),
            "BACKUP_HTTP_ADDR": f"127.0.0.1:{port}",
            "BACKUP_ON_SHUTDOWN": "false",
            "BACKUP_CAPTURE": "off",
            **{name: "off" for name in ("BACKUP_SCHEDULE", "BACKUP_VERIFY_SCHEDULE", "BACKUP_PRUNE_SCHEDULE")},
        }
        cls.said = open(cls.moto.home / "lifeboat.log", "wb")
        cls.addClassCleanup(cls.said.close)
        cls.daemon = subprocess.Popen([LIFEBOAT, "run"], env=env, stdout=cls.said, stderr=cls.said)
        cls.addClassCleanup(cls.daemon.wait, 30)
        cls.addClassCleanup(cls.daemon.terminate)
        # It begins with a backup and a proof of it.
        deadline = time.monotonic() + 120
        while not re.search(r"PUT /backups/app/proofs/", cls.moto.read_log()):
            alive = cls.daemon.poll() is None and time.monotonic() < deadline
            assert alive, (cls.moto.home / "lifeboat.log").read_text()
            time.sleep(0.2)

    @classmethod
    def write(cls, mebibytes):
        """Leaves a database of about this size behind, which does not compress."""
        with contextlib.closing(sqlite3.connect(cls.database)) as connection:
            connection.execute("PRAGMA journal_mode = wal")
            connection.execute("DROP TABLE IF EXISTS noise")
            connection.execute("CREATE TABLE noise (bytes)")
            connection.executemany("INSERT INTO noise VALUES (randomblob(?))", [(1 << 20,)] * mebibytes)
            connection.commit()
            connection.execute("VACUUM")

    def counted(self, path):
        """Asks the daemon for a piece of work; its answer, and what S3 was asked meanwhile."""
        before = len(self.moto.read_log())
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.http + path, data=b"{}", headers=headers, method="POST")
        with urllib.request.urlopen(request, timeout=120) as response:
            answer = json.load(response)
        methods = re.findall(r'"([A-Z]+) /backups[^"]* HTTP/1.1" \d+', self.moto.read_log()[before:])
        writes = sum(method in ("PUT", "POST") for method in methods)
        reads = sum(method in ("GET", "HEAD") for method in methods)
        self.assertEqual(writes + reads, len(methods), methods)
        return answer, cost.Requests(writes, reads)

    def test_backups_and_proofs_ask_what_is_counted(self):
        for mebibytes, parts in [(1, 1), (20, 3), (2, 1)]:
            with self.subTest(mebibytes=mebibytes):
                self.write(mebibytes)
                answer, asked = self.counted("/backup-now")
                self.assertEqual(answer["outcome"], "stored", answer)
                stored, plain = (answer["snapshot"][key] for key in ("stored_bytes", "plain_bytes"))
                self.assertEqual(cost.parts(stored, plain), parts)
                self.assertEqual(asked, cost.backup(stored, plain))
                _, asked = self.counted("/verify")
                self.assertEqual(asked.writes, cost.proof(stored).writes)
                # A piece may be larger by one frame: 5 MiB instead of 4.
                self.assertLessEqual(asked.reads, cost.proof(stored).reads)
                self.assertGreaterEqual(asked.reads, cost.proof(stored * 4 / 5).reads)


class Sums(unittest.TestCase):
    def test_limits_and_defaults_come_from_the_code(self):
        read = (cost.PART_MIN, cost.PARTS_MAX, cost.PIECE, cost.DEFAULTS["retention"]["keep"])
        self.assertEqual(read, (8 << 20, 9_000, 4 << 20, "24h 7d 4w 12m"))
        self.assertEqual(cost.MERGED_SECONDS, [60, 3_600])
        with self.assertRaisesRegex(SystemExit, "has 0 places like"):
            cost.number_in("src/storage/mod.rs", r"NO_SUCH: u64 = (\d+);")

    def test_parts_grow_where_9000_do_not_suffice(self):
        mebibyte = 1 << 20
        self.assertEqual(cost.parts(1, 1), 1)
        self.assertEqual(cost.parts(8 * mebibyte, 8 * mebibyte), 1)
        self.assertEqual(cost.parts(8 * mebibyte + 1, 9 * mebibyte), 2)
        self.assertEqual(cost.parts(9_000 * 8 * mebibyte, 9_000 * 8 * mebibyte), 9_000)
        self.assertEqual(cost.parts(9_000 * 8 * mebibyte, 9_000 * 8 * mebibyte + 1), 8_000)

    def test_retention_keeps_what_it_keeps(self):
        # Wednesday, June 17, 03:17. Every 5 minutes: 24 hours; 7 days, of which today and yesterday are
        # hours; 4 weeks, of which two are days; 12 months, of which June is an hour and May ends on a
        # Sunday; 12 of the last hour, of which two are hours.
        self.assertEqual(cost.kept(5), 24 + 5 + 2 + 10 + 10)
        # Daily at midnight: `24h` are the 24 newest hours that have any, here days, and cover the 7 days
        # and 4 weeks; of the months they cover June and the end of May.
        self.assertEqual(cost.kept(1440), 24 + 10)

    def test_a_month_is_what_it_is_by_hand(self):
        gibibyte = 1 << 30
        month = cost.month(2 * gibibyte, 1440, PRICES, noncurrent_days=2)
        until_midnight = 1 - (3 * 60 + 17) / 1440
        self.assertAlmostEqual(month.snapshots, 34 + 0.5 + 2 + until_midnight)
        # Half of it is stored: 1 GiB in 128 parts, 256 pieces.
        self.assertAlmostEqual(month.storage, month.snapshots)
        self.assertAlmostEqual(month.proofs, 30)
        writes = (128 + 2) + 2 + 3 + 1
        reads = 7 + (2 + 35 + 1) + (5 + 256)
        self.assertAlmostEqual(month.requests, 30 * (writes + reads / 1000))

    def test_a_month_of_deltas_is_what_it_is_by_hand(self):
        each_second = cost.captured(1)
        merged = 1 / 60 + 1 / 3_600
        self.assertAlmostEqual(each_second.writes, 2_592_000 * (1 + merged))
        self.assertAlmostEqual(each_second.reads, 2_592_000 * (1 + 2 * merged))
        self.assertAlmostEqual(cost.captured(60).writes, 43_200 * 2 + 2_592_000 / 3_600)

    def test_prices_that_nobody_checked_say_so(self):
        self.assertIn("not checked", cost.table(PRICES).replace("\n", " "))
        self.assertNotIn("not checked", cost.table({**PRICES, "verified": True}).replace("\n", " "))
        prices = json.loads((SCRIPT.parent / "prices.json").read_text())
        self.assertLessEqual(PRICES.keys(), prices.keys())
        self.assertRegex(prices["taken"], r"^\d{4}-\d\d-\d\d$")


class Readme(unittest.TestCase):
    def run_on(self, text, *options):
        with tempfile.NamedTemporaryFile("w+", suffix=".md") as readme:
            readme.write(text)
            readme.flush()
            done = subprocess.run(
                [sys.executable, SCRIPT, "--readme", readme.name, *options], capture_output=True, text=True, timeout=60
            )
            return done.returncode, done.stdout + done.stderr, Path(readme.name).read_text()

    def test_the_table_in_the_readme_is_todays(self):
        done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_what_was_written_passes_and_what_was_changed_does_not(self):
        status, _, written = self.run_on(f"before\n{cost.BEGIN}\nold\n{cost.END}\nafter\n", "--write")
        self.assertEqual(status, 0)
        self.assertRegex(written, rf"(?s)^before\n{cost.BEGIN}\nUS dollars .*\| 10 GiB \| day .*\n{cost.END}\nafter\n$")
        self.assertEqual(self.run_on(written, "--check")[:2], (0, ""))
        status, said, _ = self.run_on(written.replace("| 10 GiB | day |", "| 10 GiB | day | 0"), "--check")
        self.assertEqual(status, 1)
        self.assertIn("out of date: deploy/scripts/cost.py --write", said)

    def test_without_its_two_markers_the_table_is_neither_checked_nor_written(self):
        for bad in ("none\n", cost.BEGIN, cost.END, cost.END + cost.BEGIN, cost.BEGIN * 2 + cost.END):
            for option in ("--check", "--write"):
                with self.subTest(text=bad, option=option):
                    status, said, text = self.run_on(bad, option)
                    self.assertEqual((status, text), (1, bad))
                    self.assertRegex(said, r"\.md must hold each once")


if __name__ == "__main__":
    unittest.main()
