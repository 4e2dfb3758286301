"""The five operations, alike on a directory and on an object store."""

import pathlib
import sys
import threading

import pytest

from jaxllm.storage import LocalStorage, ObjectStorage, Storage, objects, open_storage
from tests.fakes import make_bucket, object_storage


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


def test_below_is_a_storage_of_its_own(storage: Storage):
    storage.write("a/b/c", b"x")
    below = storage.below("a")
    assert str(below) == f"{storage}/a"
    assert below.list() == below.list("b/") == ["b/c"]
    below.below("b").write("d", b"y")
    assert storage.list() == ["a/b/c", "a/b/d"]
    with pytest.raises(ValueError, match="use a relative path"):
        storage.below("../b")


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


def test_a_place_that_leads_nowhere_is_a_plain_path(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert LocalStorage(tmp_path / "loop").root == tmp_path / "loop"
    assert LocalStorage("~nobody-is-called-so/x").root == pathlib.Path.cwd() / "~nobody-is-called-so" / "x"


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


def test_a_failed_write_leaves_the_old_content_and_nothing_else(storage: Storage):
    storage.write("a/b", b"old")

    def failing():
        yield b"new"
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        storage.write("a/b", failing())
    assert storage.read("a/b") == b"old"
    assert storage.list() == ["a/b"]
    if isinstance(storage, LocalStorage):
        assert [path.name for path in (storage.root / "a").iterdir()] == ["b"]


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


# Places


def test_a_path_is_a_directory_and_a_url_a_bucket(tmp_path, monkeypatch):
    make_bucket(monkeypatch)
    local = open_storage(tmp_path / "runs")
    assert isinstance(local, LocalStorage) and str(local) == f"{tmp_path}/runs"
    for url in ("gs://bucket/runs/a", "gs://bucket/runs/a/"):
        open_storage(url).write("x", url.encode())
        assert str(open_storage(url)) == "gs://bucket/runs/a"
    assert open_storage("gs://bucket").list() == ["runs/a/x"]
    assert open_storage("gs://bucket/runs").read("a/x") == b"gs://bucket/runs/a/"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("ftp://bucket/runs", ["run.directory = 'ftp://bucket/runs'", "gs://BUCKET/PREFIX", "s3://", "az://"]),
        ("s3://", ["run.directory = 's3://'", "s3://BUCKET/PREFIX"]),
        ("s3://bucket/a/../b", ["relative path"]),
        (pathlib.Path("gs://bucket/runs"), ["run.directory = 'gs:/bucket/runs'", "two slashes"]),
        ("s3://key:secret@bucket/runs", ["run.directory = 's3://...'", "from the environment"]),
        ("az://container/runs?sig=secret", ["run.directory = 'az://...'", "from the environment"]),
    ],
)
def test_a_wrong_url_gets_one_sentence_without_its_secrets(place, words):
    with pytest.raises(ValueError) as error:
        open_storage(place, "run.directory")
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ValueError, match=r"run.init_from = 'gs://other/a': obstore is not .*--extra object-store"):
        open_storage("gs://other/a", "run.init_from")


def test_a_bucket_that_cannot_be_listed_is_refused(monkeypatch):
    def refuse(scheme: str, bucket: str) -> None:
        raise OSError(5, "Error performing GET https://storage.example/other - 404 Not Found (NoSuchBucket)")

    monkeypatch.setattr(objects, "connect", refuse)
    with pytest.raises(
        ValueError, match=r"run.directory = 's3://other/a': S3 gives no list of it \(.*NoSuchBucket.*AWS_"
    ):
        open_storage("s3://other/a", "run.directory")


def test_no_account_is_refused_before_any_request(monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(
        ValueError, match=r"Azure gives no list of it \(Account must be specified\).*AZURE_STORAGE_ACCOUNT"
    ):
        open_storage("az://container/a")


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (
            "Generic S3 error: Error performing list request: Error performing GET http://here/b?sig=secret&a=1 "
            "in 6.1ms - Server returned non-2xx status code: 404 Not Found: <?xml version='1.0'?>\n<Error>\n"
            "<Code>NoSuchBucket</Code></Error>\n\nDebug source:\nGeneric {}",
            "Error performing GET http://here/b - 404 Not Found (NoSuchBucket)",
        ),
        (
            "Generic GCS error: Error performing token request: Error performing GET http://169.254.169.254/x in 1.2ms",
            "no credentials were found, neither in the environment nor by asking the machine for its own",
        ),
        ("", ""),
    ],
)
def test_what_a_store_says_becomes_one_line_without_secrets(said, wanted):
    assert objects.reason(RuntimeError(said)) == wanted


def test_a_store_s_error_is_an_os_error_that_names_the_object(monkeypatch):
    import obstore

    def refuse(*_: object, **__: object) -> None:
        raise obstore.exceptions.PermissionDeniedError("Generic S3 error: not allowed\n\nDebug source: ...")

    storage = object_storage()
    storage.write("a", b"x")
    for operation in ("get", "put", "list", "delete"):
        monkeypatch.setattr(obstore, operation, refuse)
    for attempt in (
        lambda: storage.read("a"),
        lambda: storage.write("a", b""),
        lambda: storage.create("a", b""),
        lambda: storage.list("a"),
        lambda: storage.remove("a"),
    ):
        with pytest.raises(OSError) as error:
            attempt()
        assert (error.value.strerror, error.value.filename) == ("not allowed", "memory://bucket/a")
    assert isinstance(storage, ObjectStorage)
