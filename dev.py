#!/usr/bin/env python3
"""Runs the project from a fresh clone, with nothing installed but Python.

    python3 dev.py demo  [arguments of the demo]      the library alone, no servers
    python3 dev.py test  [arguments of pytest]        check, then the whole suite on real servers
    python3 dev.py check                              ruff, mypy and import-linter
    python3 dev.py bench [arguments of benchmarks]    the benchmarks

The first call makes .venv beside this file and installs into it; later calls start at once, until
pyproject.toml, the Python version or the place of the checkout changes: then .venv is made anew.
"""
# Any Python can read this file, even 2.7: one that is too old hands over to a newer one, or says what to
# install. So no f-strings, no annotations and no new modules before hand_over() has been called.

from __future__ import print_function

import glob
import hashlib
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
BIN = os.path.join(VENV, "Scripts" if os.name == "nt" else "bin")
PYTHON = os.path.join(BIN, "python.exe" if os.name == "nt" else "python")
STAMP = os.path.join(VENV, "dev-stamp")

OLDEST = (3, 11)
# In the order of choice: the last one does not have a wheel of the Redis server for the tests yet.
NAMES = ("python3.13", "python3.12", "python3.11", "python3.14")
ADVICE = """dev.py needs Python 3.11 or newer; this is Python %d.%d, and no newer one was found.
  Debian, Ubuntu   sudo apt install python3 python3-venv
  macOS            brew install python@3.13
  anywhere         install uv, then run this again: it brings a Python"""

# The oldest version that an adapter works with, for its tests, beside the newest one in .venv.
OLDEST_AGNO = (os.path.join(VENV, "agno-oldest"), "agno==3.0.0")

CHECKS = (("ruff", "check", "."), ("mypy",), ("lint-imports", "--no-logo"))


def main(arguments):
    hand_over()
    command, rest = (arguments[0] if arguments else "help"), arguments[1:]
    if command == "demo":
        install("")
        return subprocess.call([PYTHON, "-m", "kern_events", "demo"] + rest)
    if command == "test":
        install("test")
        failed = check()
        # One worker a core halves the time, and each has a Postgres of its own, so not without limit.
        tests = in_root(PYTHON, "-m", "pytest", "-n", "auto", "--maxprocesses", "4", *rest)
        if failed:
            say("failed: %s (above the tests)" % ", ".join(failed))
        return tests or bool(failed)
    if command == "check":
        install("test")
        failed = check()
        say("failed: " + ", ".join(failed) if failed else "all checks passed")
        return bool(failed)
    if command == "bench":
        install("test")
        return in_root(PYTHON, "-m", "benchmarks", *rest)
    print(__doc__)
    return 0 if command in ("help", "-h", "--help") else 2


def check():
    """The names of the checks that failed; each has printed its findings."""
    return [tool[0] for tool in CHECKS if in_root(os.path.join(BIN, tool[0]), *tool[1:])]


# -- A Python that is new enough ---------------------------------------------------------------------


def hand_over():
    """Go on in a newer Python if this one is too old; does not return then."""
    if sys.version_info[:2] >= OLDEST:
        return
    arguments = [os.path.abspath(__file__)] + sys.argv[1:]
    for python in pythons():
        if silent(python, "-c", "import sys; sys.exit(sys.version_info[:2] < %r)" % (OLDEST,)):
            os.execv(python, [python] + arguments)
    uv = on_path("uv")
    if uv:
        os.execv(uv, [uv, "run", "--no-project", "--python", ">=%d.%d" % OLDEST, "python"] + arguments)
    sys.exit(ADVICE % sys.version_info[:2])


def pythons():
    """Where a newer Python may be, best first."""
    found = [on_path(name) for name in NAMES]
    for name in NAMES:
        version = name[len("python") :]
        found += sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/%s.*/bin/python3" % version)))[::-1]
    return [python for python in found if python]


def on_path(name):
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(folder, name + (".exe" if os.name == "nt" else ""))
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


# -- What is installed -------------------------------------------------------------------------------


def install(extra):
    """Make .venv hold the project with the dependencies of `extra`; at once if it already does."""
    wanted, (made_from, has) = fingerprint(), read_stamp()
    if made_from == wanted and has in (extra, "test"):
        return
    if made_from != wanted:
        say("making .venv with Python %d.%d.%d" % sys.version_info[:3])
        if subprocess.call([sys.executable, "-m", "venv", "--clear", "--without-pip", VENV]):
            sys.exit("dev.py: this Python cannot make a venv (Debian: sudo apt install python3-venv)")
    what = "the test tools and servers" if extra == "test" else "its dependencies"
    say("installing kern-events and %s into .venv; once, 5 to 60 seconds ..." % what)
    target = os.path.join(ROOT, "[%s]" % extra) if extra else ROOT
    for installer in installers():
        if call(installer + ["-e", target]) == 0:
            if extra == "test" and call(
                installer + ["--target", OLDEST_AGNO[0], "--no-deps", OLDEST_AGNO[1]]
            ):
                continue
            with open(STAMP, "w") as stamp:
                stamp.write(wanted + "\n" + extra)
            return
        say("%s could not install it" % os.path.basename(installer[0]))
    sys.exit("dev.py: nothing here could install the project: install uv or pip (Debian: python3-pip)")


def fingerprint():
    """What .venv depends on: it is made anew when any of this changes."""
    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as project:
        parts = [project.read(), ROOT.encode(), sys.version.encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def read_stamp():
    """The fingerprint and the extra of a finished .venv; ("", "") of a missing or unfinished one."""
    try:
        with open(STAMP) as stamp:
            made_from, _, has = stamp.read().partition("\n")
    except (IOError, OSError):
        return "", ""
    return (made_from, has) if os.path.exists(PYTHON) else ("", "")


def installers():
    """Commands that install into .venv, best first; each is there to be tried if the one before fails."""
    uv = on_path("uv")
    if uv:
        yield uv_install(uv)
    pip = find_pip()
    if pip:
        # uv takes 2 seconds to bring, and the rest is done in 3 instead of 20.
        if not uv and call(pip + ["install", "-qq", "uv"]) == 0:
            yield uv_install(os.path.join(BIN, "uv"), pip)
        yield pip + ["install", "-qq"]


def uv_install(uv, pip=None):
    # Behind a proxy with a certificate of its own, pip works by the system's settings; so shall uv.
    os.environ.setdefault("UV_SYSTEM_CERTS", "1")
    os.environ.setdefault("UV_NATIVE_TLS", "1")
    # A uv that we brought ourselves goes to the index that pip was told to use, and to no other.
    if pip:
        answer = subprocess.run(pip + ["config", "get", "global.index-url"], capture_output=True, text=True)
        index = os.environ.get("PIP_INDEX_URL") or answer.stdout.strip()
        if index:
            os.environ.setdefault("UV_DEFAULT_INDEX", index)
    return [uv, "pip", "install", "-q", "--python", PYTHON]


def find_pip():
    """A pip that installs into .venv: this Python's own, or the one bundled with it."""
    if silent(sys.executable, "-m", "pip", "--version"):
        return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", PYTHON]
    if silent(PYTHON, "-m", "ensurepip"):
        return [PYTHON, "-m", "pip", "--disable-pip-version-check"]
    return None


# -- Processes ---------------------------------------------------------------------------------------


def call(command):
    """Run a command in the checkout; its exit status, 127 if it cannot be started."""
    try:
        return subprocess.call(command, cwd=ROOT)
    except OSError as error:
        say("%s: %s" % (command[0], error.strerror))
        return 127


def in_root(*command):
    return call(list(command))


def silent(*command):
    """Whether the command exists and succeeds."""
    with open(os.devnull, "w") as nowhere:
        try:
            return subprocess.call(command, stdout=nowhere, stderr=nowhere) == 0
        except OSError:
            return False


def say(text):
    sys.stderr.write("dev.py: " + text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
