"""Experiment trackers, offline: stand-ins whose parameters are those of the real functions, where installed."""

import inspect
import sys
import types

import pytest

from probekit.cli.main import main
from probekit.results.results import Results

SIZES = [
    "--n-layer",
    "1",
    "--n-embd",
    "16",
    "--n-head",
    "2",
    "--resolution",
    "12",
    "--n-colours",
    "4",
    "--batch-size",
    "8",
]


class StandIn:
    """What was logged, whoever asked."""

    def __init__(self):
        self.runs, self.logged, self.files, self.ended, self.params = [], [], [], [], {}


def wandb_stand_in(seen):
    class Run:
        id = "run-1"

        def log(self, data, step=None):
            assert all(isinstance(value, float | int) for value in data.values())
            seen.logged.append((step, data))

        def save(self, glob_str, base_path=None, policy="live"):
            seen.files.append(glob_str)

        def finish(self, exit_code=None):
            seen.ended.append(exit_code)

    def init(project=None, name=None, config=None, dir=None, id=None, resume=None):
        seen.runs.append(id)
        seen.params = config
        return Run()

    module = types.ModuleType("wandb")
    module.init, module.Run = init, Run
    return module


def mlflow_stand_in(seen):
    def set_experiment(experiment_name=None):
        pass

    def start_run(run_id=None, run_name=None):
        seen.runs.append(run_id)
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="run-1"))

    def log_params(params):
        assert all(isinstance(value, str) and len(value) <= 500 for value in params.values())
        seen.params = params

    def log_metrics(metrics, step=None):
        seen.logged.append((step, metrics))

    def log_artifact(local_path):
        seen.files.append(local_path)

    def end_run(status="FINISHED"):
        seen.ended.append(int(status != "FINISHED"))

    module = types.ModuleType("mlflow")
    for function in (set_experiment, start_run, log_params, log_metrics, log_artifact, end_run):
        setattr(module, function.__name__, function)
    return module


STAND_INS = {"wandb": wandb_stand_in, "mlflow": mlflow_stand_in}


@pytest.fixture(params=STAND_INS)
def tracked(request, monkeypatch):
    seen = StandIn()
    monkeypatch.setitem(sys.modules, request.param, STAND_INS[request.param](seen))
    return request.param, seen


@pytest.mark.parametrize("kind", STAND_INS)
def test_the_stand_ins_have_the_parameters_of_the_real_functions(kind):
    real = pytest.importorskip(kind)
    made = STAND_INS[kind](StandIn())
    owners = [(made, real)] + ([(made.Run, real.Run)] if kind == "wandb" else [])
    for mine, theirs in owners:
        for name, function in vars(mine).items():
            if inspect.isfunction(function):
                known = inspect.signature(getattr(theirs, name)).parameters
                assert set(inspect.signature(function).parameters) <= set(known), name


def test_training_is_tracked_and_resumed_in_the_same_run(tracked, tmp_path):
    kind, seen = tracked
    line = [
        "train",
        "wandering-digits",
        "--out",
        str(tmp_path / "run"),
        "--limit",
        "60",
        "--tracker",
        kind,
        *SIZES,
        "--steps",
        "2",
    ]
    assert main(line) == 0
    steps = [step for step, values in seen.logged if "step/loss" in values]
    assert steps
    assert seen.ended == [0]
    assert main(line) == 0
    assert seen.runs == [None, "run-1"]
    assert steps[-1] == 2
    other = "mlflow" if kind == "wandb" else "wandb"
    sys.modules[other] = STAND_INS[other](StandIn())
    assert main([other if word == kind else word for word in line]) == 2


def test_a_study_is_tracked_by_depth(tracked, tmp_path):
    kind, seen = tracked
    out = tmp_path / "study"
    line = ["study", "pixels", "--on", "wandering-digits", "--limit", "60", "--Cs", "0.01", "--window", "0"]
    assert main([*line, "--no-controls", "--out", str(out), "--tracker", kind]) == 0
    (curve,) = Results(out).curves().values()
    expected = {
        int(d): {f"wandering-digits/{curve.series}/accuracy": float(a)}
        for d, a in zip(curve.depths, curve.values, strict=True)
    }
    assert dict(seen.logged) == expected
    assert seen.files == [str(out / "report" / "index.html")]


def test_a_tracker_that_is_not_installed_is_asked_for_and_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    line = ["study", "pixels", "--on", "digits", "--out", str(tmp_path), "--tracker", "wandb"]
    assert main(line) == 2
    assert "pip install wandb" in capsys.readouterr().err
