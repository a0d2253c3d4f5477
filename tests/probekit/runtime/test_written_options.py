"""Options written after a data set or an encoder: one grammar, and paths that exist are themselves."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from probekit.datasets import load_dataset
from probekit.runtime.errors import UserError
from probekit.runtime.written_options import read_values, split_options
from tests.probekit.datasets.image_folders import image_folder

NAMES = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True)
VALUES = st.text(st.characters(exclude_characters="#", exclude_categories=["Cs", "Cc"]), min_size=1)


@example({"label": ":~", "mean": "/", "module": "a:."})
@given(st.dictionaries(NAMES, VALUES))
def test_what_is_written_is_read(options):
    text = "no/such/place" + "".join(f"#{name}={value}" for name, value in options.items())
    assert split_options(text) == ("no/such/place", options)


@pytest.mark.parametrize("name", ["a#b", "a#label=dog", "c#", "d#b=1#c=2"])
@pytest.mark.parametrize("form", ["{}", "hf:{}", "tokens:igpt:{}", "igpt:{}@4"])
def test_a_path_that_exists_is_itself(tmp_path, name, form):
    (tmp_path / name).mkdir()
    text = form.format(tmp_path / name)
    assert split_options(text) == (text, {})
    assert split_options(f"{text}#layers=0#b-c=d#e") == (text, {"layers": "0", "b_c": "d#e"})


def test_a_data_set_in_a_folder_with_a_hash_takes_options(tmp_path):
    folder = image_folder(tmp_path / "a#split_seed=0", "cat", "dog")
    for seed in (0, 3):
        data = load_dataset(f"{folder}#split_seed={seed}")
        assert data.classes == ("cat", "dog")
        assert data.provenance["split_rule"]["seed"] == seed


@pytest.mark.parametrize("text", ["x#label", "x#label=", "x#1=a", "x#a=1#a=2", "#"])
def test_other_forms_are_refused(text):
    with pytest.raises(UserError, match=r"options cannot be parsed"):
        split_options(text)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("seed", "7", 7),
        ("batches", "1,2", (1, 2)),
        ("verify", "False", False),
        ("mean", "0.5", 0.5),
        ("std", "1,2,3", (1, 2, 3)),
        ("layers", "0", ("0",)),
        ("label", "1", "1"),
        ("seed", 7, 7),
    ],
)
def test_values_of_other_types(name, text, value):
    assert read_values({name: text}) == {name: value}


@pytest.mark.parametrize(
    "written", ["seed=-1", "seed=1_0", "fold=1.0", "batches=1,", "norm=no", "std=a", "split_seed=99999999999"]
)
def test_values_that_are_none(written):
    name, value = written.split("=")
    with pytest.raises(UserError, match=f"#{written} is not a valid value; write for example #{name}="):
        read_values({name: value})
