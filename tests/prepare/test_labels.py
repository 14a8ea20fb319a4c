"""Lists of labels: a line means the record that it names."""

import pytest

from factory.datasets.store import Store
from factory.prepare.labels import read_labels
from factory.recipe import InputError


def labels(folder, name, text, keys):
    store = Store(folder)
    store.write(name, text.encode())
    return read_labels(store, name, name).of_records(keys, "faces.rec")


@pytest.mark.parametrize("number", ["index", "idx", "key", "number", "record"])
def test_a_named_column_of_numbers_says_which_record_a_line_means(tmp_path, number):
    text = f"{number},path,label\n2,x/b.jpg,7\n1,x/a.jpg,5\n"
    assert labels(tmp_path, "labels.csv", text, [1, 2])[0] == ["5", "7"]
    with pytest.raises(InputError, match=r"more than one line of record 2"):
        labels(tmp_path, "labels.csv", f"{text}2,x/c.jpg,8\n", [1, 2])


def test_other_columns_of_that_name_are_no_numbers(tmp_path):
    text = "key,path,label\nb,x/b.jpg,7\na,x/a.jpg,5\n"
    assert labels(tmp_path, "labels.csv", text, [1, 2])[0] == ["7", "5"]  # in their order


@pytest.mark.parametrize(
    ("text", "wanted", "taken"),
    [
        ("0\ta/0.jpg\n1\ta/1.jpg\n2\tb/2.jpg\n", ["a", "a", "b"], "folders"),  # DCFace's
        ("5\ta/0.jpg\n5\ta/1.jpg\n6\tb/2.jpg\n", ["5", "5", "6"], "labels"),  # labels and paths
        ("a/0.jpg\t4\na/1.jpg\t5\nb/2.jpg\t6\n", ["4", "5", "6"], "labels"),  # paths and labels
        ("0\ta/0.jpg\n1\ta/1.jpg\n2\ta/2.jpg\n", ["0", "1", "2"], "labels"),  # one folder
    ],
)  # fmt: skip
def test_two_columns_are_a_label_and_a_path_or_a_number_and_a_path(tmp_path, text, wanted, taken):
    found, said = labels(tmp_path, "list.txt", text, [0, 1, 2])
    assert found == wanted and said == [f"labels are the {taken} of list.txt"]
