"""An image's way to a point on the curve, as docs/explanation/architecture.md lists it, against the calls of a run."""

import re
import sys
import threading
from importlib import import_module
from inspect import unwrap
from operator import attrgetter
from pathlib import Path

import numpy as np

from probekit import Results, extract, load_dataset, load_encoder, sweep
from probekit.reports.figures.depth import depth_figure
from probekit.reports.panels import build_panels
from probekit.selection.choose_C import FitSettings

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "architecture.md"


def listed_functions():
    """Names on the page, in order, by the code that runs them; a class is named where any of its methods runs."""
    names, codes = [], {}
    for module, name in re.findall(r"^\| \d+ \| `([\w.]+):([\w.]+)` \|", PAGE.read_text(), flags=re.MULTILINE):
        names.append(f"{module}:{name}")
        value = attrgetter(name)(import_module(module))
        functions = vars(value).values() if isinstance(value, type) else [unwrap(value)]
        # images are transformed where the transform is called, not where it is made
        made = {"__init__", "__post_init__"}
        plain = [unwrap(f) for f in functions if callable(f) and f.__name__ not in made]
        codes |= {f.__code__: names[-1] for f in plain}
    return names, codes


def test_the_functions_are_called_in_the_order_of_the_page_and_never_from_below(tmp_path):
    names, codes = listed_functions()
    called, upwards = {}, []  # a dict keeps a name once, also when two threads call its function at the same time

    def watch(frame, event, _):
        name = codes.get(frame.f_code) if event == "call" else None
        if name is None or name in called:
            return
        called[name] = None
        caller = frame.f_back
        while caller is not None and caller.f_code not in codes:
            caller = caller.f_back
        if caller is not None and names.index(codes[caller.f_code]) > names.index(name):
            upwards.append((codes[caller.f_code], name))

    encoder = load_encoder("random:tiny", resolution=4, n_colours=8, layers=["00", "01"])
    data = load_dataset("digits")
    _ = FitSettings().version  # part of a record's key: found by a fit of four rows, once in a process
    before = sys.getprofile()
    threading.setprofile(watch)  # the encoder's threads
    sys.setprofile(watch)
    try:
        store = extract(encoder, data, tmp_path / "features.h5", limit=120)
        sweep(store, tmp_path, Cs=np.logspace(-3, 1, 12))
        depth_figure(build_panels(Results(tmp_path))[0])
    finally:
        sys.setprofile(before)
        threading.setprofile(None)
    assert list(called) == names
    assert not upwards
