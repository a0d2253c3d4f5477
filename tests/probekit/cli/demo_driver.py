"""Runs of `probekit demo`: a whole one in FOLDER, then some that may be killed, each in a process of its own.

Arguments: FOLDER, and JSON, a list of [folder, kill], where kill is null or [word, count]: SIGKILL in place of the
count-th fsync or rename of a path that contains the word. Prints an exit status a run; -9 is a kill. The whole run is
this process's own, so that what it imported serves all the others.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

from probekit.cli import demo
from probekit.cli.main import main

TINY = "demo --steps 4 --batch-size 4 --n-layer 1 --n-embd 12 --limit 30 --out {out}"


def path_of(argument: Any) -> str:
    return os.readlink(f"/proc/self/fd/{argument}") if isinstance(argument, int) else str(argument)


def deadly(call: Callable[..., Any], word: str, left: list[int]) -> Callable[..., Any]:
    """`call`, but a SIGKILL where it is made for the last of `left` times on a path with `word` in it."""

    def instead(*arguments: Any, **named: Any) -> Any:
        if any(word in path_of(argument) for argument in arguments):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **named)

    return instead


def one_run(folder: str, kill: tuple[str, int] | None) -> int:
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, sys.stderr.fileno())
    if kill is not None:
        left = [kill[1]]
        for name in ("fsync", "replace", "rename"):
            setattr(os, name, deadly(getattr(os, name), kill[0], left))
    with open(log, "w") as file, redirect_stdout(file):
        return main(TINY.format(out=os.path.basename(folder)).split())  # the name of the folder decides nothing


def tell(status: int) -> None:
    sys.stdout.write(f"{status}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    demo.LARGEST_C = 1e-4  # strong penalties are solved at once; what is tested here is the order of things
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])  # one core: the demo starts no further processes
    tell(one_run(sys.argv[1], None))
    for folder, kill in json.loads(sys.argv[2]):
        child = os.fork()
        if child == 0:
            os._exit(one_run(folder, kill))
        tell(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
