"""Whatever a JSON file holds, it is a value or one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from dualslm.errors import DualSLMError
from dualslm.files import parsed_json, read_json


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"{",
        b"[" * 100_000,
        b'{"a": ' * 100_000,
        b"1" * 5000,
        b'{"a": 1, "a": 2}',
        b'{"a": "\\ud800"}',
        b'{"\\udc00": 1}',
        "{}".encode("utf-16"),
    ],
)
def test_what_is_no_json_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(DualSLMError, match=r"the report .*a\.json") as error:
        read_json(tmp_path / "a.json", "the report", "make it again")
    assert "\n" not in str(error.value)


def test_json_may_have_a_mark_and_both_halves_of_a_character(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": "\\ud83d\\udc69"}')
    assert read_json(tmp_path / "a.json", "the report", "make it again") == {"a": "👩"}


@pytest.mark.parametrize("text", [b"[]", b"1", b'{"a": 1}', b"null"])
def test_an_object_of_another_kind_is_one_line(text: bytes) -> None:
    with pytest.raises(DualSLMError, match=r"line 2 of a\.work is damaged: got no object with a, b"):
        parsed_json(text, "line 2 of a.work", "delete it", fields=("a", "b"))
    assert parsed_json(b'{"a": 1, "b": 2}', "line 2", "delete it", fields=("a", "b")) == {"a": 1, "b": 2}
