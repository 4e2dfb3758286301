"""Files, documents, and the sentences for bad input."""

import gzip
import json
import pathlib

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from jaxllm.config import SourceConfig
from jaxllm.data.corpus import documents
from jaxllm.data.files import find

SHARED = pathlib.Path(__file__).parents[2].parent / "shared" / "data"


def read(path, **fields) -> list[tuple[str, str]]:
    return [(identifier, text) for identifier, text in documents(SourceConfig(path=str(path), **fields))]


def refused(path, *words: str, **fields) -> None:
    """Reading fails with one sentence that holds the words."""
    with pytest.raises(ValueError) as caught:
        read(path, **fields)
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence, sentence


def write_zstandard(path: pathlib.Path, content: bytes) -> None:
    path.write_bytes(zstandard.ZstdCompressor().compress(content))


def test_embedded_python_is_the_standard_library():
    found = dict(documents(SourceConfig(path="embedded:python")))
    assert "asyncio/base_events.py" in found
    assert "def dumps(" in found["json/__init__.py"]
    assert 5e6 < sum(map(len, found.values())) < 5e7
    for name in found:
        assert not {"test", "tests", "site-packages", "__pycache__"} & set(name.split("/"))
    names = [file.name for file in find(SourceConfig(path="embedded:python"))]
    assert names == sorted(names)


def test_embedded_python_may_be_taken_in_parts():
    names = [file.name for file in find(SourceConfig(path="embedded:python/json/*"))]
    assert "json/decoder.py" in names and all(name.startswith("json/") for name in names)
    refused("embedded:python/jsn/*", "embedded:python/jsn/*", "correct the pattern")


def test_embedded_python_without_sources_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    refused("embedded:python", "embedded:python", str(tmp_path), "name another source")


def test_text_is_a_document_a_file_a_line_or_a_paragraph(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("one\r\ntwo\n \n\n三\n\tfour".encode())
    assert read(path) == [("a.txt", "one\r\ntwo\n \n\n三\n\tfour")]
    lines = [("a.txt:1", "one"), ("a.txt:2", "two"), ("a.txt:5", "三"), ("a.txt:6", "\tfour")]
    assert read(path, documents="line") == lines
    assert read(path, documents="paragraph") == [("a.txt:1", "one\ntwo"), ("a.txt:5", "三\n\tfour")]


def test_compressed_files_read_like_plain_ones(tmp_path):
    content = "".join(f"line {number} 行\n" for number in range(50_000)).encode()
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content[:1000]) + gzip.compress(content[1000:]))
    half = len(content) // 2
    frames = [zstandard.ZstdCompressor().compress(part) for part in (content[:half], content[half:])]
    (tmp_path / "a.txt.zst").write_bytes(b"".join(frames))
    plain, packed, zstd = (read(tmp_path / f"a.txt{ending}", documents="line") for ending in ("", ".gz", ".zst"))
    assert len(plain) == 50_000
    assert [text for _, text in packed] == [text for _, text in zstd] == [text for _, text in plain]
    assert read(tmp_path / "a.txt.zst") == [("a.txt.zst", content.decode())]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\ntwo")
    assert read(tmp_path / "a.txt") == [("a.txt", "one\ntwo")]
    assert read(tmp_path / "a.txt", documents="line") == [("a.txt:1", "one"), ("a.txt:2", "two")]


def test_directories_and_globs_are_sorted_and_named_from_their_base(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/c.jsonl", ".hidden", ".git/config", "empty.txt"):
        path = tmp_path / "top" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if name == "empty.txt" else '{"text": "json"}' if name.endswith("jsonl") else name)
    assert read(tmp_path / "top") == [("a/c.jsonl:1", "json"), ("a/z.txt", "a/z.txt"), ("b.txt", "b.txt")]
    assert read(f"{tmp_path}/top/**/*.txt") == [("a/z.txt", "a/z.txt"), ("b.txt", "b.txt")]
    assert read(f"{tmp_path}/t*p/b.txt") == [("top/b.txt", "b.txt")]


def test_jsonl_and_parquet_give_the_named_field(tmp_path):
    rows = [{"text": "one", "body": "eins"}, {"text": "two\nlines", "body": "zwei"}, {"text": " ", "body": "drei"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    assert read(tmp_path / "a.jsonl") == [("a.jsonl:1", "one"), ("a.jsonl:2", "two\nlines")]
    assert read(tmp_path / "a.parquet") == [("a.parquet:0", "one"), ("a.parquet:1", "two\nlines")]
    for name in ("a.jsonl", "a.parquet"):
        assert [text for _, text in read(tmp_path / name, text_field="body")] == ["eins", "zwei", "drei"]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    assert read(tmp_path / "a.jsonl.gz")[1] == ("a.jsonl.gz:2", "two\nlines")
    (tmp_path / "records").write_bytes((tmp_path / "a.jsonl").read_bytes())
    assert read(tmp_path / "records", format="jsonl")[0] == ("records:1", "one")
    dictionary = table.set_column(0, "text", table["text"].dictionary_encode())
    pyarrow.parquet.write_table(dictionary, tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet")[0] == ("b.parquet:0", "one")


def test_missing_and_empty_sources(tmp_path):
    refused(tmp_path / "missing.txt", "missing.txt", "correct the path")
    refused(tmp_path / "*.txt", "no file matches", "*.txt")
    (tmp_path / "empty.txt").write_text("")
    refused(tmp_path / "empty.txt", "empty.txt", "is empty")
    refused(tmp_path, str(tmp_path), "no file with anything in it")
    (tmp_path / "blank.txt").write_text("\n \n\t\n")
    refused(tmp_path / "blank.txt", "blank.txt", "no text but white space")
    (tmp_path / "unreadable.txt").symlink_to(tmp_path / "gone")
    refused(tmp_path / "unreadable.txt", "unreadable.txt")


@pytest.mark.parametrize("how", ["file", "line", "paragraph"])
def test_bytes_that_are_not_utf8_are_named_by_offset(tmp_path, how):
    content = "Zürich\nline\nBern ".encode() + b"\xff\n"
    (tmp_path / "a.txt").write_bytes(content)
    refused(tmp_path / "a.txt", "a.txt: byte 18,", "0xff", "convert the file to UTF-8", documents=how)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content))
    refused(tmp_path / "a.txt.gz", "a.txt.gz: byte 18 of its decompressed text,", documents=how)
    write_zstandard(tmp_path / "a.txt.zst", content)
    refused(tmp_path / "a.txt.zst", "a.txt.zst: byte 18 of its decompressed text,", documents=how)
    (tmp_path / "mark.txt").write_bytes(b"\xef\xbb\xbf" + content)
    refused(tmp_path / "mark.txt", "mark.txt: byte 21,", documents=how)
    (tmp_path / "cut.txt").write_bytes("Zürich, 城".encode()[:-1])
    refused(tmp_path / "cut.txt", "cut.txt: byte 9,", documents=how)


def test_broken_jsonl_lines_are_named(tmp_path):
    path = tmp_path / "a.jsonl"
    for line, words in [
        ('{"text": "cut', ["not JSON"]),
        ('["text"]', ["no JSON object"]),
        ('{"body": "b", "title": "t"}', ["no field 'text'", "'body', 'title'", "text_field"]),
        ("{}", ["no field 'text' but no field at all"]),
        ('{"text": 3}', ["'text'", "int", "instead of text"]),
        ('{"text": null}', ["'text'", "NoneType"]),
        ('{"text": "\\ud800"}', ["not JSON"]),
        ("[" * 100_000, ["not JSON"]),
    ]:
        path.write_text(f'{{"text": "fine"}}\n\n{line}\n')
        refused(path, "a.jsonl, line 3", *words)
    path.write_bytes(b'{"text": "\xff"}\n')
    refused(path, "a.jsonl: byte 10,", "UTF-8")


@pytest.mark.parametrize("how", ["file", "line"])
@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_damaged_compressed_files_are_named(tmp_path, ending, how):
    content = bytes(str(list(range(40_000))), "ascii")
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    packed = gzip.compress(content) if ending == ".gz" else compressor.compress(content)
    path = tmp_path / f"a.txt{ending}"
    for size in (5, 20, len(packed) // 2, len(packed) - 1):
        path.write_bytes(packed[:size])
        refused(path, path.name, "copy the file again", documents=how)
    path.write_bytes(packed + b"garbage after the end")
    refused(path, path.name, "copy the file again", documents=how)
    path.write_bytes(b"this was never compressed")
    refused(path, path.name, f"not a whole {ending} file", documents=how)
    damaged = bytearray(packed)
    damaged[len(packed) // 2] ^= 0xFF
    path.write_bytes(damaged)
    refused(path, path.name, "copy the file again", documents=how)


def test_damaged_and_unfit_parquet_files_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", None], "number": [1, 2], "list": [["a"], ["b"]]}), path)
    refused(path, "a.parquet, row 1", "null instead of text")
    refused(path, "no field 'body'", "'text', 'number', 'list'", text_field="body")
    refused(path, "'number'", "int64 instead of text", text_field="number")
    refused(path, "'list'", "instead of text", text_field="list")
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:-1], b"PAR1", b"x" * 100):
        path.write_bytes(damaged)
        refused(path, "a.parquet", "no whole parquet file")
    (tmp_path / "b.parquet.gz").write_bytes(gzip.compress(content))
    refused(tmp_path / "b.parquet.gz", "decompress the file")


def test_documents_are_streamed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\n" * 200_000 + b"\xff\n")
    stream = documents(SourceConfig(path=str(path), documents="line"))
    assert next(stream) == ("a.txt:1", "good")
    with pytest.raises(ValueError, match="byte 1000000,"):
        list(stream)


@pytest.mark.skipif(not SHARED.exists(), reason="needs the real texts in ../shared/data")
def test_real_corpora_are_read():
    english = read(SHARED / "text_en/c4_demo.jsonl")
    assert len(english) == sum(1 for _ in open_lines(SHARED / "text_en/c4_demo.jsonl"))
    table = pyarrow.parquet.read_table(SHARED / "text_en/c4_en_minimal_train.parquet")
    assert [text for _, text in read(SHARED / "text_en/c4_en_minimal_train.parquet")] == table["text"].to_pylist()
    assert len(read(SHARED / "text_zh/songci_0-9999.txt", documents="paragraph")) == 10_000


def open_lines(path: pathlib.Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_endings_in_capitals_and_unknown_homes(tmp_path):
    path = tmp_path / "A.JSONL"
    path.write_text('{"text": "one"}\n')
    assert read(path) == [("A.JSONL:1", "one")]
    refused("~nobody-is-called-so/a.txt", "data.sources", "~nobody-is-called-so/a.txt", "correct the path")
