"""Paths and names that could be meant in two ways."""

import os
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probekit.datasets import load_dataset
from probekit.runtime.errors import UserError
from tests.probekit.datasets.image_folders import image_folder


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_path_in_the_other_unicode_form_is_found(tmp_path, form):
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    above = tmp_path / "ü"  # as it is written here, in each case
    image_folder(above / unicodedata.normalize(form, "café"), "a", "b")
    assert load_dataset(str(above / unicodedata.normalize(other, "café"))).classes == ("a", "b")
    with pytest.raises(UserError, match="neither a known name nor an existing path"):
        load_dataset(str(above / "cafe"))


@given(st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=6))
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_existing_folder_is_itself_whatever_its_name(tmp_path, name):
    place = tmp_path / name
    if name in (".", "..") or len(os.fsencode(name)) > 200:
        return
    if not place.exists():
        image_folder(place, "a", "b", count=2)
    assert load_dataset(place).classes == ("a", "b")
