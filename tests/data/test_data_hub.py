"""Addresses of the Hugging Face hub, without a network: what is asked of its library, and what its failures become."""

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from jaxllm.config import HuggingFaceTokenizer, SourceConfig
from jaxllm.data import files
from jaxllm.data.hub import fetch
from jaxllm.data.tokenizer import source_digest


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Every request, answered with a directory."""
    requests = []

    def download(repo, *, repo_type, revision, allow_patterns):
        requests.append((repo, repo_type, revision, set(allow_patterns)))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return requests


def test_a_path_is_left_alone(asked):
    assert fetch("some/where.txt", "sources") == "some/where.txt"
    assert not asked


def test_a_dataset_s_files_are_a_source(asked, tmp_path):
    (tmp_path / "zh").mkdir()
    for name in ("b.txt", "a.txt"):
        (tmp_path / "zh" / name).write_text("text")
    found = files.find(SourceConfig(path="hf://datasets/owner/name@v1/zh/*.txt"))
    assert [file.name for file in found] == ["a.txt", "b.txt"]
    assert asked == [("owner/name", "dataset", "v1", {"zh/*.txt", "zh/*.txt/*"})]


def test_a_model_s_tokenizer_is_two_files(asked, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    assert len(source_digest(HuggingFaceTokenizer(path="hf://owner/name"))) == 64
    assert asked == [("owner/name", "model", None, {"tokenizer.json", "tokenizer_config.json"})]


def test_what_cannot_be_fetched_is_one_sentence(monkeypatch):
    def fail(*_, **__):
        raise LocalEntryNotFoundError("no network\nand more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ValueError, match=r"^sources = 'hf://datasets/a/b' cannot be fetched \(no network\): check .*"):
        fetch("hf://datasets/a/b", "sources")
    with pytest.raises(ValueError, match="write hf://datasets/OWNER/NAME/PATH"):
        fetch("hf://datasets", "sources")
