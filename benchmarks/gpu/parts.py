"""Parts of a benchmark that takes minutes: each ends with a row "PART: finished, s", and is skipped where it has one.

A part is finished when that row was written by the same commit on the same device; what a killed part had written
stays, and the part is measured anew. One that fails is shown with its traceback, and the next ones go on.
"""

import argparse
import csv
import sys
import time
import traceback

import torch
from rows import RESULTS, circumstances, record
from rows import timed as timed

from igpt_model.devices import find_device
from igpt_model.errors import UserError


def command_line(doc, parts):
    """A parser with what all these scripts take: parts, --device, --toy, --again."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}; all when none is named")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--toy", action="store_true", help="everything tiny, in seconds")
    parser.add_argument("--again", action="store_true", help="measure finished parts anew")
    return parser


def read(parser, parts, words=None):
    """The command line, or the given words, checked."""
    given = parser.parse_args(words)
    if strange := sorted(set(given.parts) - set(parts)):
        parser.error(f"unknown parts {', '.join(strange)}; choose among {', '.join(parts)}")
    try:
        find_device(given.device)
    except UserError as error:
        parser.error(str(error))
    if given.device == "cuda":
        # every size compiled as if it were the only one: a second one would be compiled for sizes that vary, a ninth
        # not at all
        from torch._dynamo import config

        config.automatic_dynamic_shapes, config.recompile_limit = False, 64
    given.parts = given.parts or list(parts)
    return given


def finished(name, part, device):
    """Whether results/NAME.csv says that this commit finished the part on this device."""
    path = RESULTS / f"{name}.csv"
    if not path.exists():
        return False
    # rows that were put beside the code since make it no other code
    mine = [circumstances(device)[key].removesuffix("-dirty") for key in ("commit", "device")]
    with open(path, newline="") as file:
        return any(
            row["measure"] == f"{part}: finished, s"
            and [row[key].removesuffix("-dirty") for key in ("commit", "device")] == mine
            for row in csv.DictReader(file)
        )


def run(name, parts, given):
    """Measure the parts that were asked for, a dict of functions that yield (what, value); 1 if one of them failed."""
    name = f"{name}_toy" if given.toy else name
    failed = 0
    for part in (part for part in parts if part in given.parts):
        if not given.again and finished(name, part, given.device):
            print(f"{part}: finished before; --again measures it anew", flush=True)
            continue
        try:
            record(name, _rows(part, parts[part]), given.device)
        except UserError as error:
            print(f"{part}: {error}", file=sys.stderr, flush=True)
            failed = 1
        except Exception:
            # a lent machine's minutes are dear: one part's error must not cost the others
            traceback.print_exc()
            failed = 1
        if given.device == "cuda":
            torch.cuda.empty_cache()
    return failed


def _rows(part, measures):
    begun = time.perf_counter()
    for what, value in measures():
        yield f"{part}: {what}", float(value)
    yield f"{part}: finished, s", time.perf_counter() - begun
