"""Tokenizers: nothing is lost, nothing is added, damaged files are named."""

import gzip
import json
import pathlib

import numpy as np
import pytest
import tokenizers

from jaxllm.config import BytesTokenizer, HuggingFaceTokenizer, SentencePieceTokenizer, SourceConfig
from jaxllm.data import tokenizer as module
from jaxllm.data.corpus import documents
from jaxllm.data.files import find
from jaxllm.data.split import SplitSource
from jaxllm.data.tokenizer import Bytes, SentencePiece, load_saved, load_tokenizer
from jaxllm.data.training import sample, train

SHARED = pathlib.Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="needs the real files in ../shared/data")

HARD = [
    "",
    " ",
    "\n",
    "def f(x):\n    if x:\n\t\treturn  {x: 'y'}   # done\n\n\n",
    "  two leading and two trailing spaces  ",
    "tabs\t\tand\r\nother\rline ends\x0b\x0c\x85\u2028",
    "床前明月光，疑是地上霜。𠮷",
    "😀👩‍👩‍👧 e\u0301 é ﬁ Ⅷ ½ \ufeff\u00a0\u3000",
    "a\u2581b\u2581\u2581c \u2581",
    "<s></s><unk><pad><0x0A><|endoftext|>",
    "\0nul\0",
    "1234567890 3.14159 0xff",
]

CODE = "".join(
    document.text for _, document in zip(range(40), documents(SourceConfig(path="embedded:python")), strict=False)
)


@pytest.fixture(scope="module")
def trained() -> SentencePiece:
    return train(SentencePieceTokenizer(vocab_size=600), [CODE[:200_000], "床前明月光，疑是地上霜。\n" * 20])


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory) -> pathlib.Path:
    """A byte-level BPE tokenizer.json with a special token, truncation and padding that must not act."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "</s>", "<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator([CODE[:50_000]], trainer)
    library.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    library.enable_truncation(8)
    library.enable_padding(pad_id=0, pad_token="<pad>", length=64)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    library.save(str(path))
    return path


def tokenizer_of(kind: str, trained: SentencePiece, byte_level: pathlib.Path):
    return {"trained": trained, "bytes": Bytes()}.get(kind) or load_tokenizer(
        HuggingFaceTokenizer(path=str(byte_level))
    )


@pytest.mark.parametrize("kind", ["trained", "hugging face", "bytes"])
def test_text_comes_back_exactly(kind, trained, byte_level, tmp_path):
    tokenizer = tokenizer_of(kind, trained, byte_level)
    texts = [*HARD, "".join(HARD), CODE[:20_000]]
    encoded = tokenizer.encode_batch(texts)
    for text, ids in zip(texts, encoded, strict=True):
        assert ids.dtype == np.int32
        np.testing.assert_array_equal(ids, tokenizer.encode(text))
        assert tokenizer.decode(ids) == text
        assert tokenizer.eos_id not in ids
        assert ids.size == 0 or (ids.min() >= 0 and ids.max() < tokenizer.vocab_size)
    assert len(tokenizer.encode("")) == 0
    assert tokenizer.decode([*tokenizer.encode("a"), tokenizer.eos_id, *tokenizer.encode("b")]) == "ab"

    tokenizer.save(tmp_path)
    again = load_saved(tmp_path)
    assert type(again) is type(tokenizer)
    assert (again.digest, again.vocab_size, again.eos_id) == (tokenizer.digest, tokenizer.vocab_size, tokenizer.eos_id)
    for text, ids in zip(texts, encoded, strict=True):
        np.testing.assert_array_equal(again.encode(text), ids)


def test_training_is_silent_and_gives_the_same_model_again(capfd):
    config = SentencePieceTokenizer(vocab_size=400)
    texts = [CODE[:60_000]]
    first, second = train(config, texts), train(config, texts)
    assert first.files == second.files
    assert first.vocab_size == 400
    assert train(config, [CODE[60_000:120_000]]).digest != first.digest
    assert capfd.readouterr() == ("", "")


def test_training_learns_indentation_and_joins_letters_with_punctuation(trained):
    assert len(trained.encode("        ")) == 1
    assert len(trained.encode("self.")) == 1
    assert len(trained.encode("1990")) == 4
    assert len(trained.encode(CODE)) < len(CODE.encode()) / 2


def test_unigram_is_trained_too():
    trained = train(SentencePieceTokenizer(vocab_size=300, algorithm="unigram"), [CODE[:20_000]])
    assert [trained.decode(trained.encode(text)) for text in HARD] == HARD


@pytest.mark.parametrize("text", ["a", "abc abc\n", "".join(map(chr, range(0x4E00, 0x4E00 + 5000)))])
def test_texts_of_too_few_or_too_many_characters_are_no_error(text):
    trained = train(SentencePieceTokenizer(vocab_size=1000), [text])
    assert trained.vocab_size <= 1000
    assert trained.decode(trained.encode(text)) == text


def test_frequent_characters_become_pieces_and_rare_ones_bytes():
    common, rare = "月", [chr(0x4E00 + index) for index in range(3000) if chr(0x4E00 + index) != "月"]
    trained = train(SentencePieceTokenizer(vocab_size=400), [common * 1000 + "".join(rare)])
    assert len(trained.encode("月")) == 1
    assert sum(len(trained.encode(character)) == 3 for character in rare) > 2900


def test_the_sample_is_of_training_text_and_spread_over_the_files(tmp_path):
    for number in range(200):
        (tmp_path / f"{number:03d}.txt").write_text(f"<{number:03d}>" + "x" * 995)
    source = SourceConfig(path=str(tmp_path), name="s")
    split_source = SplitSource.of(source, find(source), 0.2)
    parts = [part for document in documents(source) for part in split_source.split.parts(document)]
    held_out = {part.text for name, part in parts if name == "held_out"}
    texts = list(sample([split_source], 50_000))
    assert sum(map(len, texts)) == 50_000
    assert not held_out & set(texts)
    numbers = sorted(int(text[1:4]) for text in texts)
    assert numbers[0] < 20
    assert numbers[-1] > 180
    assert sum(map(len, sample([split_source], 10**9))) == 1000 * (200 - len(held_out))


def test_one_large_file_fills_the_sample_and_sources_share_it(tmp_path):
    (tmp_path / "a.txt").write_text("a" * 300_000)
    (tmp_path / "b.txt").write_text("城" * 200_000)
    sources = []
    for name in "ab":
        source = SourceConfig(path=str(tmp_path / f"{name}.txt"), name=name)
        sources.append(SplitSource.of(source, find(source), 0.02))
    texts = list(sample(sources, 90_000))
    assert texts == ["a" * 30_000, "城" * 20_000]


def test_hugging_face_end_tokens(byte_level, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(byte_level.read_bytes())
    assert load_tokenizer(HuggingFaceTokenizer(path=str(tmp_path))).eos_id == 1
    assert load_tokenizer(HuggingFaceTokenizer(path=str(path), eos_token="<|end|>")).eos_id == 2
    for named in ("<|end|>", {"content": "<|end|>"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": named, "chat_template": "kept"}))
        tokenizer = load_tokenizer(HuggingFaceTokenizer(path=str(path)))
        assert tokenizer.eos_id == 2
        assert json.loads(tokenizer.files["tokenizer_config.json"]) == {"eos_token": "<|end|>", "chat_template": "kept"}
    assert load_tokenizer(HuggingFaceTokenizer(path=str(path), eos_token="</s>")).eos_id == 1
    with pytest.raises(ValueError, match=r"eos_token = '<nope>'.* has no token '<nope>'; name one"):
        load_tokenizer(HuggingFaceTokenizer(path=str(path), eos_token="<nope>"))
    content = json.loads(byte_level.read_text())
    content["added_tokens"] = content["post_processor"] = None
    content["model"]["vocab"] = {token: index for token, index in content["model"]["vocab"].items() if index > 2}
    content["added_tokens"] = []
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="none of the usual tokens"):
        load_tokenizer(HuggingFaceTokenizer(path=str(tmp_path / "bare")))


def test_packed_tokenizers_are_the_plain_ones(byte_level, tmp_path):
    (tmp_path / "tokenizer.json.gz").write_bytes(gzip.compress(byte_level.read_bytes()))
    packed = load_tokenizer(HuggingFaceTokenizer(path=str(tmp_path)))
    assert packed.digest == load_tokenizer(HuggingFaceTokenizer(path=str(byte_level))).digest


def damaged(content: bytes) -> list[bytes]:
    return [b"", content[:1], content[: len(content) // 2], content[:-1], b"not this" * 10, b"\xff" * 100]


def test_damaged_tokenizer_files_are_named(trained, byte_level, tmp_path):
    model = tmp_path / "some.model"
    for content in damaged(trained.files["tokenizer.model"]):
        model.write_bytes(content)
        with pytest.raises(ValueError, match=r"some\.model is not a whole SentencePiece model"):
            load_tokenizer(SentencePieceTokenizer(path=str(model)))
    path = tmp_path / "tokenizer.json"
    for content in damaged(byte_level.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"tokenizer\.json is not a whole tokenizer\.json"):
            load_tokenizer(HuggingFaceTokenizer(path=str(path)))
    packed = tmp_path / "packed.json.gz"
    for content in damaged(gzip.compress(byte_level.read_bytes()))[2:]:
        packed.write_bytes(content)
        with pytest.raises(ValueError, match=r"packed\.json\.gz is truncated or damaged"):
            load_tokenizer(HuggingFaceTokenizer(path=str(packed)))
    path.write_bytes(byte_level.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": ')
    with pytest.raises(ValueError, match=r"tokenizer_config\.json beside .* is damaged"):
        load_tokenizer(HuggingFaceTokenizer(path=str(path)))


def test_missing_and_oversized_files_are_named(byte_level, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"tokenizer\.path: .*gone\.model cannot be read"):
        load_tokenizer(SentencePieceTokenizer(path=str(tmp_path / "gone.model")))
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(HuggingFaceTokenizer(path=str(tmp_path)))
    with pytest.raises(ValueError, match="holds no tokenizer"):
        load_saved(tmp_path)
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 1000)
    with pytest.raises(ValueError, match="is larger than 1,000 bytes"):
        load_tokenizer(HuggingFaceTokenizer(path=str(byte_level)))
    bomb = tmp_path / "bomb.json.gz"
    bomb.write_bytes(gzip.compress(b" " * 10_000))
    with pytest.raises(ValueError, match="is larger than 1,000 bytes"):
        load_tokenizer(HuggingFaceTokenizer(path=str(bomb)))


def test_bytes_are_bytes():
    tokenizer = load_tokenizer(BytesTokenizer())
    assert tokenizer.encode("aé").tolist() == [97, 0xC3, 0xA9]
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (257, 256)
    assert tokenizer.decode([97, 0xC3, 256]) == "a\ufffd"


@needs_shared
@pytest.mark.parametrize(
    ("name", "eos", "hello"),
    [
        ("gpt2_tokenizer.json", 50256, [15496, 995]),
        ("minimind_6400_tokenizer.json", 2, None),
        ("deepseek_r1_tokenizer.json.gz", 1, None),
    ],
)
def test_published_hugging_face_tokenizers(name, eos, hello):
    tokenizer = load_tokenizer(HuggingFaceTokenizer(path=str(SHARED / "tokenizers" / name)))
    assert tokenizer.eos_id == eos
    if hello:
        assert tokenizer.encode("Hello world").tolist() == hello
    texts = [*HARD, (SHARED / "text_zh/songci_0-9999.txt").read_text()[:5000], CODE[:5000]]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts


@needs_shared
def test_published_sentencepiece_models():
    mistral = load_tokenizer(SentencePieceTokenizer(path=str(SHARED / "tokenizers/mistral_v1.model")))
    assert (mistral.vocab_size, mistral.eos_id) == (32_000, 2)
    assert mistral.encode("Hello world").tolist() == [22557, 1526]
    text = (SHARED / "text_en/tinyshakespeare.txt").read_text()[:20_000]
    assert mistral.decode(mistral.encode(text)) == text


@needs_shared
def test_real_text_survives_a_tokenizer_trained_on_other_text(trained):
    for name in ("text_en/wiki_demo.txt", "text_zh/songci_0-9999.txt"):
        text = (SHARED / name).read_text(encoding="utf-8")[:300_000]
        assert trained.decode(trained.encode(text)) == text
