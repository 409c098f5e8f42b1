"""What bin/python asks of an environment: does it have what is needed, and make .venv.

    environment.py suits           status 0 if this Python's version will do
    environment.py check [EXTRA]   status 0 if this Python has all that is needed, else 3 and why
    environment.py make            make .venv from this Python, or bring it up to date

The standard library alone, and a syntax that older Pythons read too, so that they can say that
they are too old.
"""

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
PYPROJECT = os.path.join(ROOT, "pyproject.toml")
CONSTRAINTS = os.path.join(ROOT, "constraints.txt")
VENV = os.path.join(ROOT, ".venv")
VENV_PYTHON = os.path.join(VENV, "bin", "python")
READY = os.path.join(VENV, "ready")  # written last; bin/python compares it at each start
LOG = os.path.join(VENV, "setup.log")  # written first: a .venv without it is not our own

# Builds of TensorFlow that go by another name.
ALSO = {"tensorflow": ["tensorflow-cpu", "tensorflow-rocm"]}


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def requirements(name):
    """The list `name` of pyproject.toml (tomllib came with Python 3.11)."""
    body = re.search(rf"^{name} = (\[$.*?^\])", read(PYPROJECT), re.MULTILINE | re.DOTALL)
    return ast.literal_eval(body.group(1))


def satisfies(version, ranges):
    """Whether a version lies within ranges such as '>=2.21,<2.22'."""

    def numbers(text):
        return [int(n) for n in re.match(r"\d+(\.\d+)*", text).group().split(".")]

    return all(
        numbers(version) >= numbers(part[2:])
        if part.startswith(">=")
        else numbers(version) < numbers(part[1:])
        for part in ranges.split(",")
    )


def wrong_python():
    """Empty if this Python's version will do, else a predicate that says why not."""
    version = "{}.{}.{}".format(*sys.version_info)
    ranges = re.search('^requires-python = "(.*)"', read(PYPROJECT), re.MULTILINE).group(1)
    return "" if satisfies(version, ranges) else f"is Python {version}, but {ranges} is needed"


def lack(extra=None):
    """Empty if this Python has all that is needed, else a predicate that says why not."""
    if wrong_python():
        return wrong_python()
    from importlib import metadata

    wrong = []
    for requirement in requirements("dependencies") + (requirements(extra) if extra else []):
        name, ranges = re.match(r"([\w-]+)(.*)", requirement).groups()
        for distribution in [name, *ALSO.get(name, [])]:
            try:
                found = metadata.version(distribution)
            except metadata.PackageNotFoundError:
                continue
            if not satisfies(found, ranges):
                wrong.append((requirement, f" (it has {found})"))
            break
        else:
            wrong.append((requirement, ""))
    if not wrong:
        return ""
    return "lacks {}. To install: {} -m pip install -c {} {}".format(
        ", ".join(requirement + found for requirement, found in wrong),
        shlex.quote(sys.executable),
        shlex.quote(CONSTRAINTS),
        " ".join(shlex.quote(requirement) for requirement, _ in wrong),
    )


def say(text):
    print(f"everystep: {text}", file=sys.stderr, flush=True)


def make():
    """Makes .venv, or brings it up to date, while holding a lock. Raises SystemExit if it fails."""
    import fcntl  # here, since `check` and `suits` answer on any system

    if importlib.util.find_spec("ensurepip") is None:
        sys.exit(
            "everystep: {} cannot make environments: its ensurepip is missing. On Debian and "
            "Ubuntu: apt install python{}.{}-venv".format(sys.executable, *sys.version_info)
        )
    # The lock ends with its last holder, however that ends. pip is handed it as well: should
    # this process be killed alone, the next waits until that pip has stopped writing.
    with open(VENV + ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another start is setting up {VENV}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = read(PYPROJECT) + read(CONSTRAINTS)
        usable = os.path.exists(READY) and os.access(VENV_PYTHON, os.X_OK)
        if usable and read(READY) == wanted:
            return  # the other start made it
        if usable:
            say(f"pyproject.toml or constraints.txt has changed: updating {VENV}")
            os.unlink(READY)
        else:
            say(
                f"first use: installing TensorFlow and what else is needed into {VENV} "
                "(2 GB, some minutes, this once)"
            )
            start_afresh()
        with open(LOG, "w") as log:
            if not usable:
                # The real path: after an upgrade that takes this Python away, .venv is made anew.
                python = os.path.realpath(sys.executable)
                call([python, "-I", "-m", "venv", VENV], log, lock, "making the environment")
            pip = [VENV_PYTHON, "-I", "-m", "pip", "install", "--no-input", "--progress-bar=off"]
            wheels = ["--disable-pip-version-check", "--only-binary=:all:", "-c", CONSTRAINTS]
            lists = ("dependencies", "report", "test", "dev")
            names = [name for one in lists for name in requirements(one)]
            call(pip + wheels + names, log, lock, "pip")
        with open(READY + ".new", "w", encoding="utf-8") as file:
            file.write(wanted)
        os.replace(READY + ".new", READY)


def start_afresh():
    """Leaves an empty .venv; what an interrupted start left there goes, anyone else's stays."""
    config = os.path.join(VENV, "pyvenv.cfg")
    if os.path.exists(config):
        if not os.path.exists(LOG):
            sys.exit(
                f"everystep: {VENV} was not made by bin/python, which therefore leaves it alone. "
                f"Activate it, or set LAB_PYTHON={VENV_PYTHON}, or remove it."
            )
        os.unlink(config)  # first, lest half of our own look like someone else's
    shutil.rmtree(VENV, ignore_errors=True)
    os.makedirs(VENV, exist_ok=True)


def call(command, log, lock, what):
    log.write(f"$ {' '.join(command)}\n")
    log.flush()
    status = subprocess.call(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        pass_fds=[lock.fileno()],
    )
    if status:
        lines = [line for line in read(LOG).splitlines() if line.strip()]
        # Without a network pip ends by blaming the versions; only its retries tell why.
        broken = [line for line in lines if "connection broken" in line]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        print("\n".join(broken[-1:] + errors[-3:]), file=sys.stderr)
        sys.exit(
            f"everystep: {what} failed (its whole output: {LOG}). "
            "Mend that and start again, or name a ready environment in LAB_PYTHON."
        )


def main():
    command, *extra = sys.argv[1:]
    if command == "suits":
        sys.exit(3 if wrong_python() else 0)
    if command == "check":
        why = lack(*extra)
        print(why)
        sys.exit(3 if why else 0)
    try:
        make()
    except KeyboardInterrupt:
        say("stopped; the next start sets up .venv anew")
        sys.exit(130)
    except OSError as error:
        sys.exit(
            f"everystep: cannot set up {VENV}: {error}. "
            "Mend that, or name a ready environment in LAB_PYTHON."
        )


if __name__ == "__main__":
    main()
