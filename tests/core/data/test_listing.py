import pytest

from core.data.listing import Strings, check_split, coded, expand, find_files, has_splits


def test_strings_come_back_in_any_script():
    words = ["", "a", "längere/Wörter.jpg", "画像/猫.png", "odd\udcff.jpg", ""]
    packed = Strings.of(words)
    assert list(packed) == words
    assert packed[-2] == words[-2] and packed[1:3] == words[1:3] and len(packed) == 6
    with pytest.raises(IndexError):
        packed[6]


def test_joined_strings_are_those_of_the_parts():
    parts = [["a", "bc"], [], ["", "d"]]
    assert list(Strings.joined([Strings.of(part) for part in parts])) == ["a", "bc", "", "d"]


def test_labels_are_numbered_in_sorted_order():
    classes, codes = coded(["dog", None, "ant", "dog"])
    assert classes == ["ant", "dog"] and codes.tolist() == [1, -1, 0, 1]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{008..011}.tar", ["008.tar", "009.tar", "010.tar", "011.tar"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("x{}y", ["xy"]),
    ],
)
def test_braces_are_expanded(pattern, names):
    assert expand(pattern) == names


def test_files_are_found_by_name_folder_and_pattern(tmp_path):
    for name in ("b.tar", "a.tar", "c.zip", "c.txt"):
        (tmp_path / name).touch()
    names = lambda path: [file.name for file in find_files(path, (".tar", ".zip"))]  # noqa: E731
    assert names(tmp_path) == ["a.tar", "b.tar", "c.zip"]
    assert names(tmp_path / "b.tar") == ["b.tar"]
    assert names(tmp_path / "*.tar") == names(tmp_path / "{a,b}.tar") == ["a.tar", "b.tar"]
    with pytest.raises(FileNotFoundError, match=r"no \.tar or \.zip file at .*nothing"):
        find_files(tmp_path / "nothing*.tar", (".tar", ".zip"))


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        ({"train"}, True),
        ({"train", "val", "annotations"}, True),
        ({"train", "bus", "car"}, False),  # a class of vehicles
        ({"cat", "dog"}, False),
        (set(), False),
    ],
)
def test_splits_are_told_from_classes(folders, splits):
    assert has_splits(folders) is splits


def test_a_missing_split_is_said():
    check_split("train", (), "x")
    check_split("val", ("val", "train"), "x")
    with pytest.raises(ValueError, match=r"x has no splits .* so no 'val'"):
        check_split("val", (), "x")
    with pytest.raises(ValueError, match="no split 'test'; it has train, val"):
        check_split("test", ("val", "train"), "x")
