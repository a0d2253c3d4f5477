"""The tests that docs/results/cifar10-gpu/plan.md names, in its order, from a folder of results."""

from probekit import compare


def joined(results, series, window):
    """The record of `window` neighbouring layers around the best one."""
    found = [r for r in results.of(series, "concat") if len(r.layers) == window]
    if not found:
        raise ValueError(f"{series} has no window of {window} layers: run the stage concat.")
    return found[0]


def compared(a, b):
    """A comparison of two records as JSON values, differences in points."""
    told = compare(a, b)
    return {
        "a": told.a,
        "b": told.b,
        "accuracy_a": told.accuracy_a,
        "accuracy_b": told.accuracy_b,
        "points": 100 * told.difference,
        "low": 100 * told.low,
        "high": 100 * told.high,
        "p": told.p,
    }


def holm(tests):
    """Give each of several tests Holm's adjusted p, "p_holm"."""
    running = 0.0
    for rank, name in enumerate(sorted(tests, key=lambda name: tests[name]["p"])):
        running = max(running, min(1.0, (len(tests) - rank) * tests[name]["p"]))
        tests[name]["p_holm"] = running


def planned_tests(results, window):
    """The primary verdict, the three secondary tests with Holm's correction, and what is only described."""
    verdict = results.verdict("igpt")
    best, pixels, random = (results.best(series) for series in ("igpt", "pixels", "random"))
    window_igpt, window_random = (joined(results, series, window) for series in ("igpt", "random"))
    secondary = {
        "best layer against raw pixels": compared(best, pixels),
        "best layer against the best layer of random weights": compared(best, random),
        "window of layers against the best layer": compared(window_igpt, best),
    }
    holm(secondary)
    described = {
        "window of random weights against their best layer": compared(window_random, random),
        "window of layers against raw pixels": compared(window_igpt, pixels),
        "random weights, the verdict": results.verdict("random").sentences(),
    }
    primary = {
        "shape": verdict.shape,
        "peak": verdict.peak_depth,
        "last": verdict.last_depth,
        "accuracy": verdict.accuracy,
        "low": verdict.low,
        "high": verdict.high,
        "points over the last layer": 100 * verdict.gain,
        "gain_low": 100 * verdict.gain_low,
        "gain_high": 100 * verdict.gain_high,
        "p_rise": verdict.p_rise,
        "p_fall": verdict.p_fall,
        "p": verdict.p,
        "not significantly below the best": list(verdict.not_below),
        "sentences": verdict.sentences(),
        "warnings": list(verdict.warnings),
    }
    return {"primary": primary, "secondary": secondary, "described": described}


def measures(tests):
    """Rows for the benchmark's CSV."""
    primary = tests["primary"]
    for name in (
        "peak",
        "last",
        "accuracy",
        "low",
        "high",
        "points over the last layer",
        "gain_low",
        "p_rise",
        "p_fall",
    ):
        yield f"depth curve: {name}", primary[name]
    yield "depth curve: rises then falls (1: yes)", float(primary["shape"] == "rises then falls")
    for family in ("secondary", "described"):
        for name, test in tests[family].items():
            if isinstance(test, dict):
                yield f"{name}: points", test["points"]
                yield f"{name}: p", test.get("p_holm", test["p"])
