"""Tables that other programs write."""

import pytest

from probekit.datasets import load_dataset
from probekit.runtime.errors import UserError
from tests.probekit.datasets.image_folders import image_folder


def listed(root, text, encoding="utf-8", suffix=".csv"):
    image_folder(root, ".", count=12) if not root.exists() else None
    (root / f"list{suffix}").write_bytes(text.encode(encoding))
    return root / f"list{suffix}"


def rows(labels, separator=",", head="path,label", end="\n"):
    lines = [
        head.replace(",", separator),
        *(f"{i}.png{separator}{label}" for i, label in zip(range(12), labels, strict=False)),
    ]
    return end.join(lines) + end


FORMS = {
    "mark of UTF-8": ("\ufeff" + rows("ab" * 6), "utf-8"),
    "UTF-16": (rows("ab" * 6), "utf-16"),
    "semicolons": (rows("ab" * 6, ";"), "utf-8"),
    "tabs": (rows("ab" * 6, "\t"), "utf-8"),
    "Windows lines": (rows("ab" * 6, end="\r\n"), "utf-8"),
    "old Mac lines": (rows("ab" * 6, end="\r"), "utf-8"),
    "spaces": (rows(["a ", " b"] * 6, head="path , label"), "utf-8"),
    "line ends in quotes": (rows([f'{x},"one\\ntwo"' for x in "ab" * 6], head="path,label,note"), "utf-8"),
    "empty lines": (rows("ab" * 6).replace("\n", "\n\n"), "utf-8"),
}


@pytest.mark.parametrize("form", FORMS)
def test_tables_of_other_programs(tmp_path, form):
    text, encoding = FORMS[form]
    data = load_dataset(listed(tmp_path / "d", text, encoding))
    assert data.classes == ("a", "b")
    found = [(int(r), data.classes[k]) for s in data.splits.values() for r, k in zip(s.row_ids, s.labels, strict=True)]
    assert sorted(found) == [(i, "ab"[i % 2]) for i in range(12)]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["a", "b", ""] * 4, r"4 of 12 rows have no label \(the first: row 2"),
        (["a", "b", "NaN"] * 4, "4 of 12 rows have no label"),
        ([i * 0.37 for i in range(12)], "contain 0.37, but must be classes"),
    ],
)
def test_labels_that_are_missing_or_fractions_are_refused(tmp_path, labels, words):
    with pytest.raises(UserError, match=words):
        load_dataset(listed(tmp_path / "d", rows(labels)))


def test_whole_numbers_are_one_class_however_they_are_written(tmp_path):
    assert load_dataset(listed(tmp_path / "d", rows(["1", "1.0", "2."] * 4))).classes == ("1", "2")
    assert load_dataset(listed(tmp_path / "e", rows(["é", "e\u0301", "b"] * 4))).classes == ("b", "é")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (rows("ab" * 6).replace("7.png", "1.png"), "lists 1.png in rows 1 and 7"),
        (rows("ab" * 6).replace("7.png", "./1.png"), "in rows 1 .as 1.png. and 7"),
        (rows("ab" * 6).replace("7.png", "77.png"), r"lists 77\.png, which does not exist"),
        (rows("ab" * 6).partition("\n")[2], "names neither images nor labels"),
        (rows("ab" * 6).replace("7.png", "../d/1.png"), "in rows 1 .as 1.png. and 7"),
        ("", "is empty"),
        (rows("ab" * 6).encode("utf-16-le").decode(), "UTF-16 without a byte order mark"),
        (rows([0, 1, -1] * 4), "4 of 12 labels of the train part are negative"),
        (rows([*"ababab", '"a', *"babab"]), "the row that begins on line 8 cannot be read"),
        (
            rows([f'{x},"note' for x in "ab" * 6], head="path,label,note"),
            "the row that begins on line 2 cannot be read",
        ),
        (rows([*"ab", '"a', *"babab", 'a"', *"bab"]), r"contain 'a\\n3\.png,b.*, which is not a single class"),
        (rows(["a,x", "b,y"] * 6, head="path,label,class"), r"several could be the label \(label, class\)"),
    ],
)
def test_tables_that_could_be_meant_in_two_ways_are_refused(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        load_dataset(listed(tmp_path / "d", text))


@pytest.mark.parametrize("column", ["split", "set", "subset", "Partition"])
def test_a_column_of_splits_is_used_whatever_its_name(tmp_path, column):
    labels = [f"{'ab'[i % 2]},{'Train' if i < 8 else 'testing'}" for i in range(12)]
    data = load_dataset(listed(tmp_path / "d", rows(labels, head=f"path,label,{column}")))
    assert len(data.splits["test"]) == 4
    assert data.provenance["columns"]["split"] == column


def test_a_column_of_folds_is_said_not_to_be_used(tmp_path):
    labels = [f"{'ab'[i % 2]},{i // 4}" for i in range(12)]
    with pytest.warns(UserWarning, match="the column fold is not used"):
        load_dataset(listed(tmp_path / "d", rows(labels, head="path,label,fold")))


def test_an_image_listed_by_its_path_or_a_link_is_the_same_image(tmp_path):
    file = listed(tmp_path / "d", rows("ab" * 6))
    (file.parent / "link.png").symlink_to(file.parent / "3.png")
    for other in (str(file.parent / "3.png"), "link.png"):
        file.write_text(rows("ab" * 6) + f"{other},a\n")
        with pytest.raises(UserError, match=r"in rows 3 \(as 3.png\) and 12"):
            load_dataset(file)


def test_signs_of_missing_labels_are_said_and_two_signs_are_classes(tmp_path):
    assert load_dataset(listed(tmp_path / "d", rows([-1, 1] * 6))).classes == ("-1", "1")
    for number, name in enumerate(["NA", "None", "null", "<NA>"]):
        with pytest.warns(UserWarning, match=f"{name!r}, which is used as a class name"):
            load_dataset(listed(tmp_path / str(number), rows(["a", "b", name] * 4)))
    labels = [f"{i % 2 if i < 8 else -1},{'train' if i < 8 else 'test'}" for i in range(12)]
    with pytest.warns(UserWarning, match="the test part has no labels"):
        data = load_dataset(listed(tmp_path / "e", rows(labels, head="path,label,split")))
    assert data.classes == ("0", "1")


def test_columns_of_one_name_are_refused_where_one_is_read(tmp_path):
    lines = [f"{i}.png,{'ab'[i % 2]},{i % 2}" for i in range(12)]
    table = listed(tmp_path / "d", "\n".join(["path,label,label", *lines]))
    for source in (table, f"{table}#label=label"):
        with pytest.raises(UserError, match="several columns named label"):
            load_dataset(source)
    assert load_dataset(listed(tmp_path / "d", "\n".join(["path,label,x", *lines]))).classes == ("a", "b")
    for option in ("path", "name", "root"):
        with pytest.raises(UserError, match=f"takes no option {option}"):
            load_dataset(f"{table}#{option}=x")


def test_a_folder_in_the_place_of_an_image_is_refused_when_the_list_is_read(tmp_path):
    place = listed(tmp_path / "d", rows("ab" * 6).replace("3.png", "3.png/../deep"))
    (tmp_path / "d" / "3.png").unlink()
    (tmp_path / "d" / "3.png" / "deep").mkdir(parents=True)
    (tmp_path / "d" / "deep").mkdir()
    with pytest.raises(UserError, match=r"lists 3\.png/\.\./deep in row 3 .*, which is not a file; give the path"):
        load_dataset(place)


def test_hard_links_are_two_images_and_other_paths_to_one_are_refused(tmp_path):
    place = listed(tmp_path / "d", rows("ab" * 6))
    (tmp_path / "d" / "3.png").unlink()
    (tmp_path / "d" / "3.png").hardlink_to(tmp_path / "d" / "2.png")
    assert load_dataset(place).classes == ("a", "b")
    twice = tmp_path / "d" / "twice.csv"
    twice.write_text(rows("ab" * 6).replace("5.png", "3.png"))
    with pytest.raises(UserError, match=r"lists 3\.png in rows 3 and 5"):
        load_dataset(twice)
    (tmp_path / "d" / "3.png").unlink()
    (tmp_path / "d" / "3.png").symlink_to(tmp_path / "d" / "2.png")
    with pytest.raises(UserError, match=r"lists 3\.png in rows 2 \(as 2\.png\) and 3"):
        load_dataset(place)


def test_a_table_of_very_many_columns(tmp_path):
    more = ",".join(f"c{k}" for k in range(20_000))
    text = rows(["a" + "," * 20_000, "b" + "," * 20_000] * 6, head=f"path,label,{more}")
    assert load_dataset(listed(tmp_path / "d", text)).classes == ("a", "b")
