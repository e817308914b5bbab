"""Headers that are cut off or are not headers at all."""

import struct

import pytest

from jaxserve.errors import WeightLoadError
from jaxserve.gguf_header import read_gguf_header

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")


def text(value: str) -> bytes:
    return U64.pack(len(value.encode())) + value.encode()


def header(*entries: bytes, version: int = 3, num_tensors: int = 0) -> bytes:
    return (
        b"GGUF"
        + U32.pack(version)
        + U64.pack(num_tensors)
        + U64.pack(len(entries))
        + b"".join(entries)
    )


ENTRIES = (
    text("flag") + U32.pack(7) + b"\x01",
    text("size") + U32.pack(4) + U32.pack(70_000),
    text("offset") + U32.pack(11) + struct.pack("<q", -5),
    text("scale") + U32.pack(6) + struct.pack("<f", 0.5),
    text("name") + U32.pack(8) + text("größe"),
    text("flags") + U32.pack(9) + U32.pack(7) + U64.pack(3) + b"\x01\x00\x01",
    text("words") + U32.pack(9) + U32.pack(8) + U64.pack(2) + text("a") + text(""),
    text("nested") + U32.pack(9) + U32.pack(9) + U64.pack(1) + U32.pack(0) + U64.pack(2) + b"\1\2",
)


def test_every_kind_of_value(tmp_path):
    (tmp_path / "a.gguf").write_bytes(header(*ENTRIES))
    found = read_gguf_header(tmp_path / "a.gguf")
    assert found.metadata == {
        "flag": True,
        "size": 70_000,
        "offset": -5,
        "scale": 0.5,
        "name": "größe",
        "flags": [True, False, True],
        "words": ["a", ""],
        "nested": [[1, 2]],
    }
    assert not found.tensors


def test_data_starts_at_the_alignment(tmp_path):
    tensor = text("w") + U32.pack(2) + U64.pack(3) + U64.pack(2) + U32.pack(0) + U64.pack(64)
    entry = text("general.alignment") + U32.pack(4) + U32.pack(128)
    (tmp_path / "a.gguf").write_bytes(header(entry, num_tensors=1) + tensor)
    found = read_gguf_header(tmp_path / "a.gguf").tensors["w"]
    assert (found.shape, found.type_id, found.offset) == ((2, 3), 0, 128 + 64)


def test_a_header_cut_anywhere_is_named_as_broken(tmp_path):
    path = tmp_path / "a.gguf"
    whole = header(*ENTRIES)
    for length in range(4, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(
            WeightLoadError, match="the header of .*a.gguf is broken .*fetch it again"
        ):
            read_gguf_header(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a GGUF file"),
        (b"<!doctype html>", "is not a GGUF file .*not a GGUF file; fetch it again"),
        (header(version=1), "version 1, little-endian version 2 or 3 is needed"),
        (header(version=3 << 24), "little-endian version 2 or 3 is needed"),
        (header(text("a") + U32.pack(99)), "value type 99 is unknown"),
        (header(text("a") + U32.pack(8) + U64.pack(2**60)), "past the end of the file"),
        (header(text("a") + U32.pack(8) + U64.pack(2) + b"\xff\xff"), "is broken"),
        (
            header(text("general.alignment") + U32.pack(4) + U32.pack(0)),
            "general.alignment is 0, a positive integer is needed",
        ),
    ],
)
def test_other_files(tmp_path, data, message):
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(WeightLoadError, match=message):
        read_gguf_header(tmp_path / "a.gguf")


def test_a_file_that_cannot_be_opened(tmp_path):
    with pytest.raises(WeightLoadError, match="cannot be read .*check the path"):
        read_gguf_header(tmp_path / "absent.gguf")
