"""Tokens become text as they come: characters whole, spaces where they belong, the same text as all at once."""

import io

import pytest
import sentencepiece

from jaxllm.data.tokenizer import Bytes, HuggingFace, SentencePiece
from jaxllm.generate.text import TextStream

TEXT = "The price — 漢字 \U0001f600 — is 5 €. \u2581 é"


@pytest.fixture(scope="module")
def tokenizers_by_kind():
    import tokenizers
    from tokenizers import decoders, models

    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the price is five", "what is the price of it"] * 20),
        model_writer=file,
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    # bytes as tokens of their own, as Llama's tokenizer.json has them: decoded in runs, all or nothing
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"</s>": 256, "▁is": 257}
    fast = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))  # type: ignore[attr-defined]
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])  # type: ignore[attr-defined]
    return {
        "bytes": Bytes(),
        "sentencepiece": SentencePiece(file.getvalue(), "here"),
        "huggingface": HuggingFace(fast.to_str().encode(), b"", "here"),
    }


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "huggingface"])
@pytest.mark.parametrize("num_before", [0, 1, 6, 15])
def test_a_stream_is_the_text_of_all_tokens_and_never_takes_back(tokenizers_by_kind, kind, num_before):
    tokenizer = tokenizers_by_kind[kind]
    ids = [int(one) for one in tokenizer.encode(TEXT)]
    stream = TextStream(tokenizer, ids[:num_before])
    pieces = [stream.add(one) for one in ids[num_before:]]
    assert "\ufffd" not in "".join(pieces)
    before = tokenizer.decode(ids[:num_before]).rstrip("\ufffd")
    assert before + "".join(pieces) + stream.end() == tokenizer.decode(ids)
    assert sum(map(bool, pieces)) > 8, "it comes bit by bit"


def test_what_never_becomes_a_character_comes_at_the_end(tokenizers_by_kind):
    stream = TextStream(tokenizers_by_kind["bytes"], [])
    assert [stream.add(one) for one in (ord("a"), 0xE2, 0x82)] == ["a", "", ""]
    assert stream.end() == "\ufffd" and stream.end() == ""
    broken = TextStream(tokenizers_by_kind["bytes"], [])
    assert [broken.add(one) for one in (0xE2, ord("b"))] == ["", "\ufffdb"]


def test_the_first_token_behind_a_prompt_keeps_its_space(tokenizers_by_kind):
    tokenizer = tokenizers_by_kind["sentencepiece"]
    the, price = tokenizer.encode("the")[-1], tokenizer.encode("price")
    stream = TextStream(tokenizer, [int(the)])
    assert "".join(stream.add(int(one)) for one in price) == " price"
    stream = TextStream(tokenizer, [])
    assert "".join(stream.add(int(one)) for one in price) == "price", "and one at the beginning has none"
