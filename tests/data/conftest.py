"""The small corpus and its store, as fixtures."""

import pathlib

import pytest

from jaxllm.data.store import Store, build
from tests.data.small import make_config, write_corpus


@pytest.fixture
def corpus(tmp_path, monkeypatch) -> pathlib.Path:
    """The directory of the small corpus; the working directory is empty."""
    write_corpus(tmp_path / "corpus")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "corpus"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """The store of the small corpus."""
    directory = tmp_path_factory.mktemp("store")
    write_corpus(directory / "corpus")
    config = make_config(directory / "corpus", store=str(directory / "built"))
    return build(config)
