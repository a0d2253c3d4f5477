"""Processes that are the ranks of one run, in the environment that torchrun gives them."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
HANG = 1200  # seconds: a limit for a hang, not for a busy machine


def run_ranks(arguments: Sequence[object], count: int = 2, folders: Sequence[Path] = ()) -> list[str]:
    """Run Python with `arguments` once a rank and return what each printed; every rank must end with status 0.

    Parameters
    ----------
    folders : where the ranks find modules, besides the repository
    """
    with socket.socket() as held:  # bound until the end, so that no other test is given the port; rank 0 may share it
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        common = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
        common |= {"MASTER_PORT": str(port), "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *folders]))}
        processes = [
            subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(count)
        ]
        printed = [process.communicate(timeout=HANG)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count, "\n".join(printed)
    return printed
