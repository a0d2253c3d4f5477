"""What holds for every test: properties are not timed, one thread, plain output, and signals as a terminal has them.

A property test has no deadline, since a loaded machine is no error. Nothing is left to chance: --randomly-seed and
--hypothesis-seed have a default, and examples depend on the seed alone. Hypothesis by itself draws one value in twenty
from the literals of the modules imported so far, that is by the order of the tests, which two workers share out anew
in each run. `make properties` tries other seeds. One thread: the bits of sums depend on their number, and two workers
of pytest with two threads each compete for two cores. SIGINT and SIGHUP: a shell that starts the tests in the
background, and `nohup`, ignore them, and every process of the tests would inherit that.
"""

import os
import signal
import sys

import pytest
from hypothesis import HealthCheck, settings

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

SEED = 3786469845
# not a child of the profile in use: where hypothesis finds a CI service (the variable CI) that one ignores the seed
PLAIN = settings.get_profile("default")
settings.register_profile("untimed", PLAIN, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """A fixed order and fixed examples, unless another seed is asked for."""
    for name, unset in (("randomly_seed", "default"), ("hypothesis_seed", None)):
        if getattr(config.option, name, SEED) == unset:
            setattr(config.option, name, SEED)
    providers = sys.modules.get("hypothesis.internal.conjecture.providers")
    # hypothesis before 6.131 collects no literals; .ci/seeds.py is there to draw what was not drawn before
    if hasattr(providers, "_get_local_constants") and not config.pluginmanager.hasplugin("seeds"):
        providers._get_local_constants = lambda: providers._local_constants


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """PyTorch's random numbers do not depend on the tests before; pytest-randomly sees to Python's and NumPy's."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.default_generator.manual_seed(int(item.config.getoption("randomly_seed", 0)))


@pytest.fixture(autouse=True, scope="session")
def plain_output():
    """80 columns and no colours, whatever the terminal asks for; pytest's own output has them still."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        for name in ("LINES", "FORCE_COLOR", "NO_COLOR", "PYTHON_COLORS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            patch.delenv(name, raising=False)
        yield
