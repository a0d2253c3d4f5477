"""What a public function is given is of the kind that its annotation says, or refused by a sentence that says so."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_origin

import numpy as np
import numpy.typing as npt
import pytest
import torch

from igpt_model.arguments import WrongType, check_fields, check_kind, checked
from igpt_model.errors import UserError


class Named(Protocol):
    name: str


class Someone:
    name = "a"


VALUES: dict[Any, tuple[list[Any], list[Any]]] = {  # annotation: what fits, what does not
    int: ([3, np.int64(3), -1], [True, 3.0, "3", None, np.array(3), torch.tensor(3), 1j, float("nan")]),
    float: ([3, 0.5, np.float32(1)], [True, "0.5", None, 1j, np.array(0.5), [0.5]]),
    bool: ([True, False], [1, None, "yes"]),
    str | Path: (["a", Path("a")], [b"a", 5, None, ["a"], np.array("a"), object()]),
    int | None: ([None, 4], [0.5, "", [], object]),
    Literal["a", "b"]: (["a", "c"], [5, None, ["a"]]),  # which of the texts is the function's affair
    Sequence[float]: ([[1, 0.5], (1,), np.ones(3), range(3)], ["1", [None], 5, None, {}, np.ones((2, 2)), iter([1])]),
    Iterable[str]: ([["a"], iter("ab")], ["ab", b"ab", [1], 5]),
    tuple[float, float]: ([(1, 2), [1, 2]], [(1,), (1, 2, 3), ("a", 1), 5]),
    tuple[str, ...]: ([(), ["a"]], ["a", [1], 5]),
    Mapping[str, int]: ([{}, {"a": 1}], [{1: 1}, {"a": "b"}, [("a", 1)], 5, None]),
    Mapping[str, tuple[Any, Any]]: ([{"a": (1, object())}], [{"a": 5}, {"a": (1, 2, 3)}]),
    Callable[[int], int] | bool | None: ([abs, True, None], [5, "abs"]),
    npt.ArrayLike: ([5, [1], np.ones(2), None, object()], []),
    Any: ([5, None], []),
    Named: ([Someone()], [5, "a", None, object(), {}]),
    Named | Sequence[Named]: ([Someone(), [Someone()]], [5, "a", np.ones(2)]),
    Someone | str: ([Someone(), "a"], [Someone, 5]),
    torch.Tensor: ([torch.ones(2), torch.empty(2, device="meta")], [np.ones(2), [1.0]]),
}


@pytest.mark.parametrize("hint", VALUES, ids=str)
def test_what_fits_passes_and_the_rest_is_named(hint):
    def function(value):
        return value

    function.__annotations__ = {"value": hint}
    guarded = checked(function)
    good, bad = VALUES[hint]
    for value in good:
        got = guarded(value)
        if isinstance(value, np.ndarray) and get_origin(hint) is Sequence:  # as the list that it stands for
            assert (type(got), got) == (list, value.tolist())
        else:
            assert got is value or (isinstance(value, np.generic) and type(got) is type(value.item()))
    for value in bad:
        with pytest.raises(WrongType, match=r"^value is .*; .*function expected .+\.$") as caught:
            guarded(value=value)
        assert isinstance(caught.value, TypeError)
        assert isinstance(caught.value, UserError)


def test_a_call_that_cannot_be_made_is_named():
    @checked
    def add(a: int, b: int = 1, *more: int, **options: Any) -> int:
        return a + b + sum(more)

    assert add(1) == 2
    assert add(1, 2, 3, anything="x") == 6
    for wrong in (lambda: add(), lambda: add("1"), lambda: add(1, 2, "3"), lambda: add(1, b=None)):
        with pytest.raises(WrongType):
            wrong()


def test_annotations_that_only_type_checkers_know_stand_for_anything():
    def function(a: "list[NotThere]", b: "int") -> "NotThere":  # noqa: F821
        return a

    guarded = checked(function)
    assert guarded([5], 1) == [5]
    with pytest.raises(WrongType, match="a is 5"):
        guarded(5, 1)
    with pytest.raises(WrongType, match="b is 'x'"):
        guarded([5], "x")


def test_numbers_of_a_list_are_in_the_plural():
    for hint, words in ((int | Sequence[int], "a whole number or a list of whole numbers"), (Sequence[str], "texts")):
        with pytest.raises(WrongType, match=rf"expected .*{words}\.$"):
            check_kind("seeds", object(), hint, "sweep")


def test_fields_of_a_dataclass():
    @dataclass
    class Settings:
        steps: int
        name: str = ""

    check_fields(Settings(3))
    with pytest.raises(WrongType, match=r"steps is 0\.5; Settings expected a whole number"):
        check_fields(Settings(0.5))
    with pytest.raises(WrongType, match="a number of more than 53 bits"):
        check_fields(Settings(1, 10**400))


def test_lists_given_for_tuples_become_tuples():
    @dataclass(frozen=True)
    class Settings:
        pair: tuple[float, float] = (0.0, 1.0)
        names: tuple[str, ...] = ()

        def __post_init__(self):
            check_fields(self)

    assert Settings([1, 2], ["a"]) == Settings((1, 2), ("a",))
    assert len({Settings([1, 2]), Settings((1, 2))}) == 1


@pytest.mark.parametrize(
    ("value", "plain"),
    [(np.bool_(True), True), (np.float32(0.5), 0.5), (np.int64(3), 3), (np.str_("a"), "a")],
)
def test_numpys_scalars_stand_for_pythons(value, plain):
    @checked
    def function(one: bool | int | float | str, *more: bool | int | float | str):
        return one, *more

    assert function(value, value) == (plain, plain)

    @dataclass(frozen=True)
    class Settings:
        one: bool | int | float | str

        def __post_init__(self):
            check_fields(self)

    assert json.dumps(Settings(np.array(plain)[()]).one) == json.dumps(plain)
    with pytest.raises(WrongType, match=r"standardize is of type bool_?; fit expected a whole number"):
        check_kind("standardize", np.bool_(True), int, "fit")


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "x/" * 3000, "a\ud800", "\u65e5" * 100])
@pytest.mark.parametrize("kind", [str, Path])
def test_what_no_file_can_be_called_is_refused_before_it_is_opened(path, kind):
    @checked
    def read(one: str | Path | None = None, several: Sequence[str | Path] = (), text: str = ""):
        return one, several

    for given in ({"one": kind(path)}, {"several": ["a", kind(path)]}):
        with pytest.raises(UserError, match="read expected a path"):
            read(**given)
    assert read("x" * 255, ["caf\xe9", "b\udc80"], path) == ("x" * 255, ["caf\xe9", "b\udc80"])
