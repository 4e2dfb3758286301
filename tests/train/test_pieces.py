"""Checkpoints in an object store: the same promises as on a disk, without a disk that processes share."""

import jax
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.storage import LocalStorage, ObjectStorage
from jaxllm.train import pieces
from jaxllm.train.catalogue import place
from tests.fakes import object_storage
from tests.train.saved import ONE, Case, abstract, bits, make_state, mesh_of


@pytest.fixture
def case() -> Case:
    return Case(object_storage(), keep=3)


def test_any_mesh_reads_what_any_other_wrote(case: Case):
    meshes = [ONE, mesh_of(data=2, fsdp=4)]
    for step, mesh in enumerate(meshes):
        case.checkpoints.save(make_state(step, mesh), step, 0, 0)
        case.checkpoints.wait()
        for other in meshes:
            wanted = abstract(make_state(0, other))
            state, meta = case.open().restore(wanted)
            assert meta.step == step
            assert bits(state) == bits(make_state(step))
            assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, wanted)
    assert not case.said


@pytest.mark.parametrize("spec", [(None, "fsdp"), ("fsdp", None), ("data", "fsdp"), (("data", "fsdp"), None), ()])
def test_boxes_cut_across_pieces(spec):
    """Every box that a device wants of an array that other boxes were written of, by rows and by columns."""
    storage, mesh = object_storage(), mesh_of(data=2, fsdp=4)
    value = np.arange(16 * 24, dtype=np.float32).reshape(16, 24)
    for number, written in enumerate([("fsdp", "data"), (None, ("fsdp", "data")), ()]):
        array = jax.device_put(value, NamedSharding(mesh, PartitionSpec(*written)))
        pieces.write(storage, f"{number}", {"a": array, "b": array + 1})
        reader = pieces.Reader(storage, pieces.files(storage, f"{number}"))
        laid = NamedSharding(mesh, PartitionSpec(*spec))
        found = reader.read(["a"], jax.ShapeDtypeStruct((16, 24), "float32", sharding=laid), stacked=False)
        np.testing.assert_array_equal(found, value)
        laid = NamedSharding(mesh, PartitionSpec("data", *spec[1:]))
        found = reader.read(["a", "b"], jax.ShapeDtypeStruct((2, 16, 24), "float32", sharding=laid), stacked=True)
        np.testing.assert_array_equal(found, np.stack([value, value + 1]))


def test_what_was_written_is_read_back_in_few_requests_of_a_bounded_size(monkeypatch):
    monkeypatch.setattr(pieces, "_BLOCK", 100)
    monkeypatch.setattr(pieces, "_FIRST", 64)
    sizes, read = [], ObjectStorage.read
    monkeypatch.setattr(
        ObjectStorage, "read", lambda self, name, start, size: sizes.append(size) or read(self, name, start, size)
    )
    laid = NamedSharding(ONE, PartitionSpec())
    arrays = {
        str(size): jax.device_put(np.arange(8 * size, dtype=np.float32).reshape(size, 8), laid) for size in (2, 9)
    }
    arrays |= {name: jax.device_put(np.float32(ord(name)), laid) for name in "abc"}
    wanted = {name: pieces.host_digest(np.asarray(array)) for name, array in arrays.items()}
    found = pieces.write(object_storage(), "x", arrays)
    assert {name: part.tolist() for name, part in found.items()} == {name: one.tolist() for name, one in wanted.items()}
    # behind the header: two rows; nine by threes, the last with one of the three numbers; the two others
    assert sorted(sizes[2:]) == [8, 64, 96, 96, 100]


def test_a_file_of_whole_arrays_is_an_ordinary_safetensors_file(case: Case):
    case.save(3)
    content = case.storage.read(f"{place(3, 0)}/params/00000.safetensors")
    found = safetensors.numpy.load(content)
    wanted = make_state(3).params
    np.testing.assert_array_equal(found["params.embedding.weight"], wanted["embedding"]["weight"])
    layer = wanted["period"]["0"]["mlp"]["up"][1]
    np.testing.assert_array_equal(found["params.layers.1.mlp.up"], layer)


def test_parameters_are_restored_alone(case: Case):
    case.save(4)
    for name in [name for name in case.storage.list() if "/training/" in name]:
        case.storage.remove(name)
    params, meta = case.open().restore_params(abstract(make_state()).params)
    assert meta.step == 4
    assert bits(params) == bits(make_state(4).params)


def test_no_damage_is_restored_silently(case: Case):
    case.save(1)
    case.save(2)
    random = np.random.default_rng(0)
    files = [name for name in case.storage.list(f"{place(2, 0)}/") if name.endswith(".safetensors")]
    assert len(files) == 2
    for name in files:
        content = case.storage.read(name)
        for at in [0, 9, *random.integers(0, len(content), 6)]:
            changed = bytearray(content)
            changed[at] ^= 1 << int(random.integers(8))
            for damage in (changed, content[:at], None):
                case.said.clear()
                case.storage.remove(name) if damage is None else case.storage.write(name, damage)
                assert case.restored() == 1, (name, at)
                assert len(case.said) == 1
        case.storage.write(name, content)
    assert case.restored() == 2


def test_a_damaged_length_asks_for_no_memory():
    storage = object_storage()
    storage.write("params/00000.safetensors", (1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="its header says it has 4,611,686,018,427,387,904 bytes"):
        pieces.Reader(storage, pieces.files(storage, "params"))


def test_what_a_process_did_not_write_is_missed(case: Case, monkeypatch):
    """Half of the pieces, as of two processes of which one stored nothing."""
    case.save(1)
    write = pieces.write

    def write_half(storage, directory, arrays):
        return write(storage, directory, dict(list(arrays.items())[::2]))

    monkeypatch.setattr(pieces, "write", write_half)
    case.checkpoints.save(make_state(2), 2, 0, 0)
    case.checkpoints.wait()
    (outcome,) = case.checkpoints.poll()
    assert "read back from step-00000002.attempt-0000 is not what was written" in outcome.error
    assert case.restored() == 1


def test_a_store_that_is_away_stops_nothing(case: Case, monkeypatch):
    case.save(1)
    with monkeypatch.context() as patch:

        def refuse(*_: object) -> None:
            raise OSError(5, "503 Slow Down", "s3://bucket/runs/a")

        patch.setattr(ObjectStorage, "write", refuse)
        case.checkpoints.save(make_state(2), 2, 0, 0)
        case.checkpoints.wait()
    (outcome,) = case.checkpoints.poll()
    assert "503 Slow Down" in outcome.error
    assert len(case.said) == 1
    assert case.restored() == 1
    case.save(3)
    assert case.restored() == 3


def test_what_was_logged_is_stored_before_a_checkpoint_exists(case: Case):
    seen = []

    def flush() -> None:
        seen.append(case.checkpoints.catalogue.begun())
        if len(seen) == 2:
            raise OSError(5, "503 Slow Down", "metrics.jsonl")

    case.checkpoints._flush = flush
    case.save(1)
    assert seen == [False]
    case.checkpoints.save(make_state(2), 2, 0, 0)
    case.checkpoints.wait()
    assert "metrics.jsonl" in case.checkpoints.poll()[0].error
    assert case.restored() == 1


def test_checkpoints_may_be_moved_between_disks_and_stores(case: Case, tmp_path):
    local = Case(tmp_path / "checkpoints")
    local.save(1)
    case.save(2)
    for there, here, step in ((local, Case(object_storage()), 1), (case, local, 2)):
        for name in there.storage.list():
            here.storage.write(name, there.storage.read(name))
        assert here.restored() == step
    assert isinstance(local.storage, LocalStorage)


def test_what_is_good_is_marked_beside_training(case: Case):
    case.save(1)
    case.checkpoints.save(make_state(2), 2, 0, 16, good_through=1)
    case.checkpoints.wait()
    assert [(entry.step, entry.good) for entry in case.checkpoints.catalogue.entries()] == [(2, False), (1, True)]


def test_an_array_that_is_not_there_is_named(case: Case):
    case.save(1)
    files = pieces.files(case.storage, f"{place(1, 0)}/params")
    laid = NamedSharding(ONE, PartitionSpec())
    wanted = jax.ShapeDtypeStruct((8, 16), "float32", sharding=laid)
    with pytest.raises(ValueError, match=r"params\.layers\.3\.mlp\.up: files are missing"):
        pieces.Reader(case.storage, files).read(["params.layers.3.mlp.up"], wanted, stacked=False)
