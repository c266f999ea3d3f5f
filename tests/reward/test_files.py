"""Files that can not be read at all."""

import gzip

import pytest

import reward
from reward.files import read_csv, read_jsonl

ROW = b'{"input": "1,2", "output": "3"}\n'


def error_of(path):
    with pytest.raises(ValueError, match=path.name) as caught:
        read_jsonl(path, allowed="objects")
    return str(caught.value)


def test_a_missing_file_is_named():
    with pytest.raises(ValueError, match=r"task file no/such\.jsonl cannot be read \(No such file"):
        reward.task("countdown", test_file="no/such.jsonl").rows("test")


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    assert "cannot be read" in error_of(tmp_path)


def test_a_file_without_rows_is_refused(tmp_path):
    for content in (b"", b"\n \n"):
        path = tmp_path / "empty.jsonl"
        path.write_bytes(content)
        assert "has no rows" in error_of(path)
    (tmp_path / "empty.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match="has no rows"):
        read_csv(tmp_path / "empty.csv", columns=("a",), allowed="a row")


def test_bytes_that_are_no_text_are_located(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ROW + ROW + b"\xff\xfe\n")
    assert f"{path}, line 3: not UTF-8" in error_of(path)


@pytest.mark.parametrize(
    "damage", [lambda packed: packed[:-12], lambda packed: b"plain", lambda packed: b"\x1f\x8b\x08"]
)
def test_a_damaged_gzip_file_is_named(tmp_path, damage):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(damage(gzip.compress(ROW * 1000)))
    assert "no complete gzip file" in error_of(path)


def test_a_flipped_byte_in_a_gzip_file_is_named(tmp_path):
    packed = bytearray(gzip.compress(ROW * 1000))
    packed[20] ^= 0xFF
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(bytes(packed))
    assert "no complete gzip file" in error_of(path)


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + ROW.replace(b"\n", b"\r\n") * 2)
    assert [line for line, _ in read_jsonl(path, allowed="objects")] == [1, 2]


def test_unicode_line_separators_inside_a_row_do_not_cut_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "x\u2028y\x85z"}\n', encoding="utf-8")
    assert read_jsonl(path, allowed="objects") == [(1, {"a": "x\u2028y\x85z"})]


def test_a_csv_header_of_another_file_is_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\n1,2\n")
    with pytest.raises(ValueError, match=r"line 1: the header \['question', 'answer'\] lacks Puzzle, Solution"):
        reward.task("sudoku4", test_file=str(path)).rows("test")
