"""The documents of a source: identifiers and texts, one after the other, never all of them in memory.

A document of a text file is the file, a line, or a paragraph; of jsonl, a line's field; of parquet, a row's column.
Documents without a character other than white space are passed over. An identifier is the file's name below the source
and the line (from 1) or row (from 0), so `corpus/a.jsonl:12` leads back to the text.
"""

import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from jaxllm.config import SourceConfig
from jaxllm.data.files import COMPRESSED, NotUtf8Error, SourceFile, find, read_lines, read_text

_PARQUET_ROWS = 1024
"""Rows decoded at a time."""


class Document(NamedTuple):
    """A text, and the name it is traced by, unique within its source."""

    identifier: str
    text: str


def documents(source: SourceConfig) -> Iterator[Document]:
    """The documents of a source, in the order of its sorted files.

    Raises:
        ValueError: one sentence that names the file and the place: missing, empty, not UTF-8, broken JSON, a missing
            field, a damaged compressed or parquet file.
    """
    empty = True
    for file in find(source):
        for document in file_documents(source, file):
            empty = False
            yield document
    if empty:
        raise ValueError(f"data.sources: {source.path!r} holds no text but white space: name files with text")


def file_documents(source: SourceConfig, file: SourceFile) -> Iterator[Document]:
    """The documents of one file of a source.

    Raises:
        ValueError: as `documents` does.
    """
    format = source.format if source.format != "auto" else _format(file.path)
    if format == "jsonl":
        found = _jsonl_documents(file, source.text_field)
    elif format == "parquet":
        found = _parquet_documents(file, source.text_field)
    elif source.documents == "line":
        found = (Document(f"{file.name}:{number}", line) for number, line in read_lines(file.path))
    elif source.documents == "paragraph":
        found = _paragraphs(file)
    else:
        found = _whole_file(file, skip_other_encodings=source.is_embedded)
    return (document for document in found if document.text and not document.text.isspace())


def _format(path: pathlib.Path) -> str:
    stem = path.stem if path.suffix in COMPRESSED else path.name
    return {".jsonl": "jsonl", ".parquet": "parquet"}.get(pathlib.PurePath(stem).suffix.lower(), "text")


def _whole_file(file: SourceFile, skip_other_encodings: bool) -> Iterator[Document]:
    try:
        yield Document(file.name, read_text(file.path))
    except NotUtf8Error:
        if not skip_other_encodings:
            raise


def _paragraphs(file: SourceFile) -> Iterator[Document]:
    first, lines = 0, []
    for number, line in read_lines(file.path):
        if line and not line.isspace():
            first = first if lines else number
            lines.append(line)
        elif lines:
            yield Document(f"{file.name}:{first}", "\n".join(lines))
            lines = []
    if lines:
        yield Document(f"{file.name}:{first}", "\n".join(lines))


def _jsonl_documents(file: SourceFile, field: str) -> Iterator[Document]:
    for number, line in read_lines(file.path):
        if not line or line.isspace():
            continue
        place = f"{file.path}, line {number}"
        try:
            record = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{place} is not JSON ({error}): correct or remove the line") from None
        if not isinstance(record, dict):
            raise ValueError(f"{place} is no JSON object: write one object with a text field on each line")
        if field not in record:
            raise ValueError(_missing_field(place, field, record))
        if not isinstance(record[field], str):
            raise ValueError(_not_text(f"{place}: the field {field!r}", type(record[field]).__name__))
        yield Document(f"{file.name}:{number}", record[field])


def _missing_field(place: str, field: str, fields) -> str:
    names = ", ".join(map(repr, fields)) or "no field at all"
    return f"{place} has no field {field!r} but {names}: set text_field to the one that holds the text"


def _not_text(place: str, what: str) -> str:
    return f"{place} holds {what} instead of text: set text_field to another field, or correct the file"


def _parquet_documents(file: SourceFile, field: str) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    if file.path.suffix in COMPRESSED:
        raise ValueError(f"{file.path}: parquet has its own compression: decompress the file")
    try:
        with pyarrow.parquet.ParquetFile(file.path) as parquet:
            schema = parquet.schema_arrow
            if field not in schema.names:
                raise ValueError(_missing_field(str(file.path), field, schema.names))
            kind = schema.field(field).type
            kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
            if str(kind) not in ("string", "large_string", "string_view"):
                raise ValueError(_not_text(f"{file.path}: the column {field!r}", str(kind)))
            row = 0
            for batch in parquet.iter_batches(_PARQUET_ROWS, columns=[field]):
                for text in batch.column(0).to_pylist():
                    if text is None:
                        raise ValueError(_not_text(f"{file.path}, row {row}: the column {field!r}", "null"))
                    yield Document(f"{file.name}:{row}", text)
                    row += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"{file.path} is no whole parquet file ({reason}): copy or write it again") from None
