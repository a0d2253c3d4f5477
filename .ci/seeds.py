"""pytest plugin: every property test with many seeds, and with more examples than it asks for (`make properties`)."""

import os

import pytest
from hypothesis import core, is_hypothesis_test, settings

FIRST, LAST, TIMES = (int(word) for word in os.environ["PROPERTIES"].split())


def pytest_generate_tests(metafunc):
    """One test a seed; the name of the seed is the name of the test's case."""
    if is_hypothesis_test(metafunc.function):
        metafunc.fixturenames.append("hypothesis_seed")
        metafunc.parametrize("hypothesis_seed", range(FIRST, LAST + 1), ids="seed={}".format, scope="session")


@pytest.fixture(scope="session")
def hypothesis_seed(request):
    """The seed of this case."""
    return request.param


def pytest_collection_modifyitems(items):
    """More examples, once a function."""
    for function in {item.function for item in items if is_hypothesis_test(item.function)}:
        before = getattr(function, "_hypothesis_internal_use_settings", None) or settings.default
        function._hypothesis_internal_use_settings = settings(before, max_examples=TIMES * before.max_examples)


def pytest_runtest_setup(item):
    """As --hypothesis-seed."""
    if is_hypothesis_test(item.function):
        core.global_force_seed = item.callspec.params["hypothesis_seed"]
