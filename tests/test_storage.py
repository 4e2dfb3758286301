"""The five operations, alike on a directory and on an object store."""

import threading

import pytest

from jaxllm.storage import LocalStorage, Storage
from tests.fakes import object_storage


@pytest.fixture(params=["local", "object store"])
def storage(request, tmp_path) -> Storage:
    return LocalStorage(tmp_path / "root") if request.param == "local" else object_storage()


def test_a_content_is_read_back_whole_and_in_ranges(storage: Storage):
    storage.write("a/b.bin", b"0123456789")
    assert storage.read("a/b.bin") == b"0123456789"
    assert storage.read("a/b.bin", 3) == b"3456789"
    assert storage.read("a/b.bin", 3, 4) == b"3456"
    assert storage.read("a/b.bin", 8, 100) == b"89"
    assert storage.read("a/b.bin", 100, 1) == b""


def test_write_replaces_and_takes_pieces(storage: Storage):
    storage.write("a", b"a long old content")
    storage.write("a", (piece for piece in (b"ab", bytearray(b"cd"), memoryview(b"ef"))))
    assert storage.read("a") == b"abcdef"


def test_create_leaves_what_is_there(storage: Storage):
    assert storage.create("a/lease", b"first") is True
    assert storage.create("a/lease", b"second") is False
    assert storage.create("a/lease", b"first") is False
    assert storage.read("a/lease") == b"first"
    assert storage.list() == ["a/lease"]
    storage.remove("a/lease")
    assert storage.create("a/lease", b"third") is True


def test_of_many_creators_one_wins(storage: Storage):
    barrier, winners = threading.Barrier(8), []

    def contend(index: int) -> None:
        barrier.wait()
        if storage.create("lease", b"%d" % index * 1000):
            winners.append(index)

    threads = [threading.Thread(target=contend, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert storage.read("lease") == b"%d" % winners[0] * 1000


def test_list_is_sorted_and_by_any_prefix(storage: Storage):
    assert storage.list() == []
    assert storage.list("steps/") == []
    for name in ("steps/10/b", "steps/9/a", "steps/10/a", "other", "steps/100/a"):
        storage.write(name, b"")
    assert storage.list() == ["other", "steps/10/a", "steps/10/b", "steps/100/a", "steps/9/a"]
    assert storage.list("steps/10/") == ["steps/10/a", "steps/10/b"]
    assert storage.list("steps/10") == ["steps/10/a", "steps/10/b", "steps/100/a"]
    assert storage.list("missing/") == []


def test_remove_forgets_and_may_be_repeated(storage: Storage):
    storage.write("a/b/c", b"x")
    storage.write("a/d", b"y")
    storage.remove("a/b/c")
    storage.remove("a/b/c")
    assert storage.list() == ["a/d"]
    with pytest.raises(FileNotFoundError):
        storage.read("a/b/c")


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../a", "a/../../b", "a/./b", "a//b", "a/", "..", "a\\b", "a\0b"])
def test_names_that_lead_outside_are_refused(storage: Storage, name: str):
    for operation in (storage.read, storage.remove):
        with pytest.raises(ValueError, match="use a relative path"):
            operation(name)
    for operation in (storage.write, storage.create):
        with pytest.raises(ValueError, match="use a relative path"):
            operation(name, b"x")


def test_a_prefix_that_leads_outside_is_refused(storage: Storage):
    with pytest.raises(ValueError, match="use a relative path"):
        storage.list("../")


def test_links_out_of_the_root_are_refused(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    root = tmp_path / "root"
    root.mkdir()
    (root / "directory").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    storage = LocalStorage(root)
    for name in ("directory/secret", "file"):
        with pytest.raises(ValueError, match="outside"):
            storage.read(name)
        with pytest.raises(ValueError, match="outside"):
            storage.write(name, b"x")
        with pytest.raises(ValueError, match="outside"):
            storage.remove(name)
    with pytest.raises(ValueError, match="outside"):
        storage.list("directory/")
    assert storage.list() == []
    assert (outside / "secret").read_text() == "secret"


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path):
    storage = LocalStorage(tmp_path)
    storage.write("a/b", b"old")

    def failing():
        yield b"new"
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        storage.write("a/b", failing())
    assert storage.read("a/b") == b"old"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_a_reader_never_sees_a_part(tmp_path):
    storage = LocalStorage(tmp_path)
    contents = {bytes([number]) * 50_000 for number in range(2)}
    storage.write("a", min(contents))
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for content in contents:
                storage.write("a", [content[:25_000], content[25_000:]])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = {storage.read("a") for _ in range(300)}
    finally:
        stop.set()
        writer.join()
    assert seen <= contents


def test_unfinished_files_are_not_listed(tmp_path):
    storage = LocalStorage(tmp_path)
    listed = []

    def content():
        yield b"x"
        listed.append(storage.list())

    storage.write("a/b", content())
    assert listed == [[]]
    assert storage.list() == ["a/b"]


def test_removing_takes_empty_directories_along(tmp_path):
    storage = LocalStorage(tmp_path / "root")
    storage.write("a/b/c", b"")
    storage.write("a/d", b"")
    storage.remove("a/b/c")
    assert not (tmp_path / "root/a/b").exists()
    storage.remove("a/d")
    assert (tmp_path / "root").exists()
    assert not (tmp_path / "root/a").exists()
