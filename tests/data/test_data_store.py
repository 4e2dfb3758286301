"""Building, resuming, opening and refusing stores."""

import os
import pathlib
import signal
import subprocess
import sys
import threading

import msgspec
import numpy as np
import pytest

from jaxllm.config import BytesTokenizer, PhaseConfig, SentencePieceTokenizer, SourceConfig
from jaxllm.data import build as building
from jaxllm.data import manifest as manifests
from jaxllm.data.corpus import documents
from jaxllm.data.split import SPLITS, SplitName
from jaxllm.data.store import Store, build, open_store
from jaxllm.data.workers import Pool
from tests.data.small import make_config

SMALL = SentencePieceTokenizer(vocab_size=300, training_bytes=2000)


def contents(store: Store) -> dict[str, bytes]:
    files = (path for path in store.directory.rglob("*") if path.is_file() and path.name != "lock")
    return {path.relative_to(store.directory).as_posix(): path.read_bytes() for path in files}


def texts(store: Store, split: SplitName, source: int) -> dict[str, str]:
    """The documents of a store, decoded, by identifier."""
    stream = store.streams(split)[source]
    found = {}
    borders = list(zip(stream.offsets[:-1].tolist(), stream.offsets[1:].tolist(), strict=True))
    identifiers = store.identifiers(split, source, range(len(borders)))
    for document, (start, stop) in enumerate(borders):
        assert stream.tokens[stop - 1] == stream.eos_id
        assert store.identifiers(split, source, [document]) == {document: identifiers[document]}
        found[identifiers[document]] = store.tokenizer.decode(stream.tokens[start : stop - 1])
    return found


@pytest.mark.parametrize("tokenizer", [BytesTokenizer(), SMALL])
def test_a_store_holds_every_document_in_one_split(corpus, tokenizer):
    config = make_config(corpus, tokenizer=tokenizer)
    store = build(config)
    lines, files = (dict(documents(source)) for source in config.sources)

    train, held_out = texts(store, "train", 0), texts(store, "held_out", 0)
    assert train
    assert held_out
    assert not train.keys() & held_out.keys()
    assert train | held_out == lines

    beginnings, ends = texts(store, "train", 1), texts(store, "held_out", 1)
    for (identifier, text), beginning, end in zip(files.items(), beginnings.values(), ends.values(), strict=True):
        assert beginning + end == text, identifier
        assert 0.05 < len(end) / len(text) < 0.15

    for split, found in zip(SPLITS, [(train, beginnings), (held_out, ends)], strict=True):
        for source, mapping in zip(store.manifest.sources, found, strict=True):
            entry = source.split(split)
            assert entry.num_documents == len(mapping)
            assert entry.num_bytes == sum(len(text.encode()) for text in mapping.values())


def test_the_manifest_counts(corpus):
    store = build(make_config(corpus))
    manifest = store.manifest
    for split in ("train", "held_out"):
        tokens = sum(len(stream.tokens) for stream in store.streams(split))
        assert manifest.total(split, "num_tokens") == tokens
        assert tokens == manifest.total(split, "num_bytes") + manifest.total(split, "num_documents")
    held_out = np.concatenate([stream.tokens for stream in store.streams("held_out")])
    _, counts = np.unique(held_out, return_counts=True)
    shares = counts / counts.sum()
    assert manifest.unigram_entropy == pytest.approx(-(shares * np.log(shares)).sum(), rel=1e-12)
    per_byte = len(held_out) / manifest.total("held_out", "num_bytes")
    assert manifest.bits_per_byte(np.log(2)) == pytest.approx(per_byte)
    assert manifest.dtype == "<u2"
    described = store.describe()
    assert f"{manifest.unigram_entropy:.4f} nats/token" in described
    assert f"{manifest.bits_per_byte(manifest.unigram_entropy):.4f} bits/byte" in described
    for source in manifest.sources:
        assert f"{source.train.num_tokens:,}" in described


def test_large_vocabularies_take_four_bytes(corpus, monkeypatch):
    monkeypatch.setattr("jaxllm.data.tokenizer.Bytes.vocab_size", 65_537)
    store = build(make_config(corpus))
    assert store.manifest.dtype == "<u4"
    assert store.streams("train")[0].tokens.dtype == np.uint32
    assert texts(store, "train", 0)


def test_long_documents_are_tokenised_in_pieces(tmp_path, monkeypatch):
    text = "".join(f"line {number} of a long document, 第{number}行\n" for number in range(500)) + "x" * 5000
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    source = (SourceConfig(path=str(tmp_path / "long.txt"), name="long"),)
    whole = build(make_config(tmp_path, sources=source, store=str(tmp_path / "whole")))
    monkeypatch.setattr(building, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(building, "CHUNK_BYTES", 1000)
    pieces = build(make_config(tmp_path, sources=source, store=str(tmp_path / "pieces")))
    assert pieces.digest == whole.digest
    assert texts(pieces, "train", 0) == texts(whole, "train", 0)


def test_processes_change_no_byte(corpus, monkeypatch):
    monkeypatch.setattr(building, "CHUNK_BYTES", 300)
    alone = build(make_config(corpus, tokenizer=SMALL, store="alone"), num_workers=1)
    together = build(make_config(corpus, tokenizer=SMALL, store="together"), num_workers=2)
    assert contents(together) == contents(alone)
    assert not any(name.startswith("chunks") for name in contents(alone))


KILLED = """
import os, pathlib, signal, sys
from jaxllm.data import build as building
from jaxllm.data.store import build
from tests.data.small import make_config
from tests.data.test_data_store import SMALL

def progress(what, done, total, seen=[]):
    seen.append(what)
    if seen.count("tokenising") == 3:
        os.kill(os.getpid(), signal.SIGKILL)

building.CHUNK_BYTES = 300
build(make_config(pathlib.Path(sys.argv[1]), tokenizer=SMALL, store=sys.argv[2]), progress)
"""


def test_a_killed_build_goes_on(corpus, monkeypatch):
    monkeypatch.setattr(building, "CHUNK_BYTES", 300)
    fresh = build(make_config(corpus, tokenizer=SMALL, store="fresh"))
    root = pathlib.Path(__file__).parents[2]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(corpus), "resumed"], env=os.environ | {"PYTHONPATH": str(root)}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match="'resumed' holds no finished store: run `jaxllm data build CONFIG`"):
        open_store(make_config(corpus, tokenizer=SMALL, store="resumed"))
    assert len(list(pathlib.Path("resumed/chunks").iterdir())) == 3

    encode, encoded = building.encode_chunk, []
    monkeypatch.setattr(building, "encode_chunk", lambda *arguments: encoded.append(1) or encode(*arguments))
    build(make_config(corpus, tokenizer=SMALL, store="counted"), force=True)
    num_chunks = len(encoded)
    encoded.clear()
    monkeypatch.setattr(building, "train", lambda *arguments: pytest.fail("the tokenizer was there already"))
    resumed = build(make_config(corpus, tokenizer=SMALL, store="resumed"))
    assert contents(resumed) == contents(fresh)
    assert len(encoded) == num_chunks - 3 > 3


def test_a_finished_store_is_opened_and_force_builds_it_anew(corpus, monkeypatch):
    config = make_config(corpus)
    first = build(config)
    assert first.directory.parent == pathlib.Path("stores").resolve()
    assert first.directory.name.startswith("lines-files-")
    monkeypatch.setattr("jaxllm.data.store.write_store", lambda *arguments: pytest.fail("it was there already"))
    assert build(config).digest == open_store(config).digest == first.digest
    monkeypatch.undo()
    monkeypatch.chdir(corpus.parent / "work")
    told = []
    forced = build(config, progress=lambda *state: told.append(state), force=True)
    assert contents(forced) == contents(first)
    size = sum(path.stat().st_size for path in corpus.rglob("*") if path.is_file())
    assert told[-1] == ("tokenising", told[-1][1], size)
    assert 0 < told[-1][1] <= size


def test_other_settings_and_changed_files_are_other_stores(corpus):
    directories = [open_store(make_config(corpus)).directory]
    for fields in ({"tokenizer": SMALL}, {"held_out_fraction": 0.2}):
        directories.append(open_store(make_config(corpus, **fields)).directory)
    phases = (PhaseConfig(sequence_length=8, batch_size=1, steps=1),)
    assert open_store(make_config(corpus, seed=5, phases=phases)).directory == directories[0]
    with open(corpus / "lines.txt", "a") as file:
        file.write("one more\n")
    directories.append(open_store(make_config(corpus)).directory)
    assert len(set(directories)) == 4


def test_a_named_store_must_be_what_the_config_asks_for(corpus):
    config = make_config(corpus, store="mine")
    with pytest.raises(ValueError, match=r"data\.store = 'mine' holds no finished store: run `jaxllm data build"):
        open_store(config)
    build(config)
    other = make_config(corpus, store="mine", tokenizer=SMALL, held_out_fraction=0.2)
    for operation in (open_store, build):
        with pytest.raises(ValueError) as caught:
            operation(other)
        for words in (
            "data.store = 'mine'",
            "held_out_fraction = 0.1 instead of 0.2",
            "'bytes' instead of 'sentencepi",
        ):
            assert words in str(caught.value)
    assert build(other, force=True).manifest.tokenizer.vocab_size == 300
    assert open_store(other).manifest.tokenizer.vocab_size == 300


def test_a_named_store_outlives_its_sources(corpus):
    config = make_config(corpus, store="mine")
    digest = build(config).digest
    with open(corpus / "lines.txt", "a") as file:
        file.write("one more\n")
    with pytest.raises(ValueError, match="files that have changed since"):
        build(config)
    (corpus / "lines.txt").unlink()
    assert open_store(config).digest == digest


def test_the_digest_is_of_the_tokens_alone(corpus, tmp_path):
    first = build(make_config(corpus, store="first"))
    moved = tmp_path / "moved"
    corpus.rename(moved)
    for path in moved.rglob("*"):
        os.utime(path, (1, 1))
    second = build(make_config(moved, store="second"))
    assert second.digest == first.digest
    assert second.manifest.fingerprint != first.manifest.fingerprint
    other = build(make_config(moved, store="third", held_out_fraction=0.3))
    assert other.digest != first.digest


def test_damaged_stores_are_refused_with_the_file(corpus):
    config = make_config(corpus, tokenizer=SMALL, store="mine")
    store = build(config)
    names = [entry.name for entry in manifests.entries(store.manifest)]
    assert len(names) == 2 * 2 * 3 + 1
    for name in names:
        path = store.directory / name
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        for damage, words in (
            (content[:-1], "the manifest says"),
            (bytes(flipped), "has changed"),
            (None, "is missing"),
        ):
            path.unlink() if damage is None else path.write_bytes(damage)
            with pytest.raises(ValueError) as caught:
                open_store(config)
            assert name in str(caught.value)
            assert words in str(caught.value)
            assert "jaxllm data build CONFIG --force" in str(caught.value)
        path.write_bytes(content)
    open_store(config)


def test_damaged_and_foreign_manifests_are_refused(corpus):
    config = make_config(corpus, store="mine")
    path = build(config).directory / "manifest.json"
    content = path.read_bytes()
    for damage in (b"", content[: len(content) // 2], b"[]", b"{}", content.replace(b"num_tokens", b"tokens")):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=r"manifest\.json is damaged: build the store again"):
            open_store(config)
    path.write_bytes(content.replace(b'"format_version": 1', b'"format_version": 2'))
    with pytest.raises(ValueError, match="format_version = 2, this jaxllm reads 1"):
        open_store(config)
    assert build(config, force=True).manifest == msgspec.json.decode(content, type=manifests.Manifest)


def test_a_directory_of_other_files_is_left_alone(corpus):
    pathlib.Path("mine").mkdir()
    pathlib.Path("mine/thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(ValueError, match="holds files that are no store's: name a new directory"):
            build(make_config(corpus, store="mine"), force=force)
    assert pathlib.Path("mine/thesis.txt").read_text() == "years of work"
    pathlib.Path("file").write_text("a file")
    with pytest.raises(ValueError, match=r"data\.store: .*file cannot be written"):
        build(make_config(corpus, store="file"))


def test_a_source_too_small_to_split_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    sources = (SourceConfig(path=str(tmp_path / "a.txt")),)
    with pytest.raises(ValueError, match=r"a\.txt' is too small to hold anything out"):
        build(make_config(tmp_path, sources=sources, store=str(tmp_path / "s")))


def test_bad_input_stops_the_build_with_its_sentence(corpus):
    (corpus / "files/d.py").write_bytes(b"fine \xff")
    with pytest.raises(ValueError, match=r"d\.py: byte 5, 0xff, is not UTF-8"):
        build(make_config(corpus))
    (corpus / "files/d.py").write_bytes(b"fine now")
    build(make_config(corpus))


def test_one_of_two_builders_waits_for_the_other(corpus):
    stages, stores = [], []

    def contend() -> None:
        stores.append(build(make_config(corpus, store="mine"), lambda *state: stages.append(state)))

    threads = [threading.Thread(target=contend) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stores[0].digest == stores[1].digest
    assert len(stages) == 2  # one chunk of each source, once


def test_a_worker_that_dies_stops_the_build(tmp_path, capfd):
    with Pool(tmp_path / "no tokenizer", "<u2", 1) as pool, pytest.raises(RuntimeError, match="exit code 1"):
        list(pool.map([("chunk", b"\x90")]))
    assert "holds no tokenizer" in capfd.readouterr().err


def test_data_needs_no_jax_until_batches_are_iterated():
    script = (
        "import sys, jaxllm.data.workers, jaxllm.data.batches; print({'jax', 'grain', 'pyarrow'} & set(sys.modules))"
    )
    root = pathlib.Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
