"""The tests that docs/results/cifar10-gpu/plan.md names, of each run of a folder of results."""

import probekit

LEVEL = 0.01
LEAST_FALL = 2.0  # points by which the chosen layer beats the last one


def compared(a, b, compare):
    """A comparison of two records as JSON values, differences in points."""
    told = compare(a, b)
    points = {"points": 100 * told.difference, "low": 100 * told.low, "high": 100 * told.high, "p": told.p}
    return {"a": told.a, "b": told.b, "accuracy_a": told.accuracy_a, "accuracy_b": told.accuracy_b, **points}


def judged(results, name, random, compare=probekit.compare):
    """The verdict of a run, its three comparisons, and whether it counts: all four must hold, so none is corrected."""
    verdict, best = results.verdict(name), results.best(name)
    last = max(results.of(name, "layer"), key=lambda record: record.depth)
    against = {
        "the last layer": compared(best, last, compare),
        "raw pixels": compared(best, results.best("pixels"), compare),
        "the best layer of random weights": compared(best, results.best(random), compare),
    }
    ahead = all(test["points"] > 0 and test["p"] < LEVEL for test in against.values())
    falls = verdict.shape == "rises then falls" and verdict.p < LEVEL
    return {
        "counts": bool(falls and ahead and against["the last layer"]["points"] >= LEAST_FALL),
        "shape": verdict.shape,
        "peak": verdict.peak_depth,
        "last": last.depth,
        "accuracy": verdict.accuracy,
        "p": verdict.p,
        "not significantly below the best": list(verdict.not_below),
        "sentences": [*verdict.sentences(), *verdict.warnings],
        "against": against,
    }


def planned_tests(results, runs):
    """The tests of each of several runs, pairs of its series and that of its random weights, and whether all count."""
    found = {name: judged(results, name, random) for name, random in runs}
    return {"runs": found, "all count": all(test["counts"] for test in found.values())}


def measures(tests):
    """Rows for the benchmark's CSV."""
    for name, test in tests["runs"].items():
        for what in ("peak", "last", "accuracy", "p"):
            yield f"{name}, depth curve: {what}", test[what]
        yield f"{name}, depth curve: rises then falls (1: yes)", float(test["shape"] == "rises then falls")
        for other, margin in test["against"].items():
            for what in ("points", "low", "p"):
                yield f"{name}, chosen layer against {other}: {what}", margin[what]
        yield f"{name}: counts (1: yes)", float(test["counts"])
