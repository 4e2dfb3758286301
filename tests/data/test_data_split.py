"""The held-out split."""

import pytest

from jaxllm.data.corpus import Document
from jaxllm.data.split import Split


def assign(count: int, fraction: float, source: str = "s") -> dict[str, str]:
    documents = [Document(f"document {number}", "text") for number in range(count)]
    split = Split.of(source, documents, fraction)
    assigned = {}
    for document in documents:
        [(name, part)] = split.parts(document)
        assert part is document
        assigned[document.identifier] = name
    return assigned


@pytest.mark.parametrize("fraction", [1e-6, 0.02, 0.5, 1 - 1e-6])
@pytest.mark.parametrize("count", [20, 21, 500])
def test_both_splits_have_a_document(count, fraction):
    assert set(assign(count, fraction).values()) == {"train", "held_out"}


def test_the_fraction_is_held_out():
    held_out = sum(name == "held_out" for name in assign(20_000, 0.1).values())
    assert 1800 < held_out < 2200


def test_the_choice_is_the_documents_own():
    few, many = assign(100, 0.1), assign(1000, 0.1)
    assert few == {identifier: many[identifier] for identifier in few}
    assert assign(1000, 0.1, source="other") != many
    assert [name for name, _ in Split.of("s", [Document(str(n), "") for n in range(20)], 0.1).parts(Document("x", ""))]


def test_few_documents_give_their_ends():
    text = "".join(f"line {number}\n" for number in range(1000))
    documents = [Document(f"d{number}", text) for number in range(19)]
    split = Split.of("s", documents, 0.1)
    for document in documents:
        (train, beginning), (held_out, end) = split.parts(document)
        assert (train, held_out) == ("train", "held_out")
        assert beginning.text + end.text == text
        assert beginning.text.endswith("\n")
        assert abs(len(end.text) / len(text) - 0.1) < 0.001
        assert beginning.identifier == f"{document.identifier}#characters=0-{len(beginning.text)}"
        assert end.identifier == f"{document.identifier}#characters={len(beginning.text)}-{len(text)}"


@pytest.mark.parametrize(
    ("text", "beginning"),
    [
        ("x" * 100, "x" * 90),  # no line end at all
        ("a\n" + "x" * 98, "a\n" + "x" * 88),  # none near
        ("x" * 85 + "\n" + "y" * 14, "x" * 85 + "\n"),  # one before
        ("x" * 92 + "\n" + "y" * 7, "x" * 92 + "\n"),  # one after
        ("x" * 99 + "\n", "x" * 90),  # only the last, which would leave nothing
        ("ab", "a"),
    ],
)
def test_the_cut_is_at_the_nearest_line_end(text, beginning):
    (_, first), (_, second) = Split.of("s", [Document("d", text)], 0.1).parts(Document("d", text))
    assert first.text == beginning
    assert first.text + second.text == text


def test_one_character_is_not_cut():
    assert Split.of("s", [Document("d", "x")], 0.9).parts(Document("d", "x")) == [("train", Document("d", "x"))]
