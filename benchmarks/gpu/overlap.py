"""What ran at the same time during an extraction: reading, launching, copying and writing, beside the GPU's kernels.

`watched` puts clocks around the steps of `probekit.extract`; `lay_over` adds them to a trace of torch.profiler (open it
in https://ui.perfetto.dev), and `shares` says how much of the time the GPU computed, and how much of every step ran
while it did. Without a GPU the encoder's call stands for its kernels.
"""

import gzip
import importlib
import json
import time
from contextlib import contextmanager
from typing import Any

import torch

MARK = "probekit.mark"


class Spans:
    """Named (begun, ended) in seconds of time.perf_counter; threads append."""

    def __init__(self):
        self.by_name = {}

    @contextmanager
    def span(self, name):
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.by_name.setdefault(name, []).append((begun, time.perf_counter()))

    def around(self, name, function):
        """The function, with a clock around it."""

        def clocked(*arguments, **named):
            with self.span(name):
                return function(*arguments, **named)

        return clocked


class Watched:
    """An encoder whose preparation and calls are clocked."""

    def __init__(self, encoder, spans):
        self.layers, self.widths, self.provenance = encoder.layers, encoder.widths, encoder.provenance
        self.prepare = spans.around("reading", encoder.prepare)
        self._call = spans.around("launching", encoder)

    def __call__(self, images, row_ids):
        return self._call(images, row_ids)


@contextmanager
def watched(spans):
    """While the body runs, extractions clock their copies to the host and their writing."""
    module: Any = importlib.import_module("probekit.features.extract")
    writer, transfer = module.FeatureWriter, module.Transfer
    module.FeatureWriter = type("FeatureWriter", (writer,), {"write": spans.around("writing", writer.write)})
    module.Transfer = type("Transfer", (transfer,), {"arrays": spans.around("copying to the host", transfer.arrays)})
    try:
        yield
    finally:
        module.FeatureWriter, module.Transfer = writer, transfer


def traced(work, spans, device, path):
    """Run the work under the profiler; write the trace with the spans in it, gzipped, and return the GPU's intervals.

    Returns
    -------
    dict
        "computing" and "copying on the GPU": lists of (begun, ended) on the spans' clock.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        # the profiler has a clock of its own: this mark is read by both
        marked = time.perf_counter()
        with torch.profiler.record_function(MARK):
            pass
        work()
        if device == "cuda":
            torch.cuda.synchronize()
    plain = path.with_suffix("")
    profiler.export_chrome_trace(str(plain))
    trace = json.loads(plain.read_text())
    plain.unlink()
    intervals = lay_over(trace, spans, marked)
    with gzip.open(path, "wt") as file:
        json.dump(trace, file)
    return intervals


def lay_over(trace, spans, marked):
    """Add the spans to a trace, the mark being `marked` on their clock; the GPU's intervals on that clock."""
    events = trace["traceEvents"]
    zero = next(event["ts"] for event in events if event.get("name") == MARK and "ts" in event) - marked * 1e6
    found: dict[str, list] = {"computing": [], "copying on the GPU": []}
    kinds = {"kernel": "computing", "gpu_memcpy": "copying on the GPU"}
    for event in events:
        if event.get("cat") in kinds and "dur" in event:
            begun = (event["ts"] - zero) / 1e6
            found[kinds[event["cat"]]].append((begun, begun + event["dur"] / 1e6))
    for number, (name, pairs) in enumerate(spans.by_name.items()):
        for begun, ended in pairs:
            times = {"ts": begun * 1e6 + zero, "dur": (ended - begun) * 1e6}
            events.append({"ph": "X", "name": name, "cat": "extract", "pid": "probekit", "tid": number, **times})
    return found


def union(intervals):
    """Disjoint intervals, in order, that cover the same time."""
    merged: list[list[float]] = []
    for begun, ended in sorted(intervals):
        if merged and begun <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], ended)
        else:
            merged.append([begun, ended])
    return merged


def length(intervals):
    """Time that the intervals cover together."""
    return sum(ended - begun for begun, ended in union(intervals))


def common(one, other):
    """Time that both cover."""
    return length(one) + length(other) - length([*one, *other])


def shares(spans, gpu):
    """Yield how much of the whole the GPU computed, and of each step what ran meanwhile."""
    computing = gpu["computing"] or spans.by_name["launching"]
    every = [pair for pairs in spans.by_name.values() for pair in pairs] + computing
    whole = max(ended for _, ended in every) - min(begun for begun, _ in every)
    yield "share of the time in which the GPU computes", length(computing) / whole
    steps = dict(spans.by_name)
    if gpu["copying on the GPU"]:
        steps["copying on the GPU"] = gpu["copying on the GPU"]
    for name, pairs in steps.items():
        yield f"{name}, share of the time", length(pairs) / whole
        yield f"{name}, share of it while the GPU computes", common(pairs, computing) / max(length(pairs), 1e-12)
