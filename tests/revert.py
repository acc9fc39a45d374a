#!/usr/bin/env python3
"""Fail-on-revert: takes each rule of tests/rules/*.toml out, in a copy of the tree, and demands that its test fails.

usage: tests/revert.py [WORD...]      only the rules whose text, file or test has one of the words

A rule that can be taken out with its test still passing is not held by that test. First of all, every test has to
pass with the rules in. `tests/integration/reliability.rs` keeps the list applicable.
"""

import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / "target" / "revert" / "tree"
# What nextest answers when a test failed; a tree that does not compile gives another code.
TESTS_FAILED = 100


def rules():
    for path in sorted((ROOT / "tests" / "rules").glob("*.toml")):
        yield from tomllib.loads(path.read_text())["rule"]


def copy_tree():
    """Brings the copy up to date. Files that are the same keep their time, so that little is built again."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")
    wanted = {name for name in listed if name and (ROOT / name).is_file()}
    for name in sorted(wanted):
        source, target = ROOT / name, COPY / name
        if target.is_file() and target.read_bytes() == source.read_bytes():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    for path in list(COPY.rglob("*")):
        if path.is_file() and str(path.relative_to(COPY)) not in wanted:
            path.unlink()


def run(tests):
    """Runs the tests in the copy; the exit code and what was printed."""
    environment = {"CARGO_TARGET_DIR": str(ROOT / "target"), **os.environ, "RUST_BACKTRACE": "0"}
    expression = " + ".join(f"test(={test})" for test in sorted(tests))
    kinds = {("--lib",) if "tests::" in test else ("--test", "integration") for test in tests}
    command = ["cargo", "nextest", "run", "--locked", "--profile", "revert", "--no-fail-fast"]
    # Nobody looks at a backtrace here, and linking takes half the time.
    command += ["--config", "profile.dev.package.lifeboat.debug=0"]
    command += [word for kind in sorted(kinds) for word in kind] + ["-E", expression]
    ended = subprocess.run(command, cwd=COPY, env=environment, capture_output=True, text=True)
    return ended.returncode, ended.stdout + ended.stderr


def without(rule):
    """Whether the test of `rule` fails without it: None if it does, else what happened instead."""
    path = COPY / rule["file"]
    text = path.read_text()
    if text.count(rule["old"]) != 1:
        return f"the text is there {text.count(rule['old'])} times"
    path.write_text(text.replace(rule["old"], rule["new"]))
    try:
        code, output = run([rule["test"]])
    finally:
        path.write_text(text)
    if code == TESTS_FAILED:
        return None
    if code == 0:
        return "its test passes without it"
    return "it did not come to a test:\n" + output[-3000:]


def main():
    words = sys.argv[1:]
    chosen = [
        rule for rule in rules()
        if not words or any(word in rule["says"] + rule["file"] + rule["test"] for word in words)
    ]
    if not chosen:
        sys.exit("no rule has any of these words")
    copy_tree()
    code, output = run({rule["test"] for rule in chosen})
    if code != 0:
        sys.exit("with every rule in, the tests have to pass:\n" + output[-6000:])
    missed = []
    for number, rule in enumerate(chosen, 1):
        began = time.monotonic()
        instead = without(rule)
        took = time.monotonic() - began
        outcome = "held" if instead is None else "NOT HELD"
        print(f"{number}/{len(chosen)} {outcome}: {rule['says']} ({rule['test']}, {took:.0f} s)", flush=True)
        if instead is not None:
            print(f"    {rule['file']}: {instead}", flush=True)
            missed.append(rule["says"])
    if missed:
        sys.exit(f"{len(missed)} of {len(chosen)} rules are not held: " + "; ".join(missed))
    print(f"{len(chosen)} rules, each held by its test")


if __name__ == "__main__":
    main()
