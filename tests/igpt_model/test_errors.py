"""A sentence stays one that can be read, whatever a damaged file made it quote."""

from igpt_model.errors import LONGEST, UserError


def test_a_long_sentence_keeps_its_two_ends():
    name = "a" * 100_000
    text = str(UserError(f"list.csv has the columns path, {name}, and none looks like labels: name it."))
    assert len(text) < LONGEST
    assert text.startswith("list.csv has the columns path, aaa")
    assert text.endswith("aaa, and none looks like labels: name it.")
    assert str(UserError("short.")) == "short."


def test_a_message_is_one_line_of_text_whatever_it_quotes():
    assert str(UserError("There is no a\nb\x1b[31m\u202e.")) == r"There is no a\x0ab\x1b[31m\x202e."
