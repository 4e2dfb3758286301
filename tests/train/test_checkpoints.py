"""Checkpoints: what is restored is what was saved, on any mesh and whatever became of the files."""

import dataclasses
import os
import resource
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import msgspec
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.config import CheckpointConfig, MeshConfig
from jaxllm.storage import LocalStorage
from jaxllm.train import arrays, catalogue
from jaxllm.train.canonical import cut
from jaxllm.train.catalogue import place
from jaxllm.train.checkpoints import Checkpoints
from jaxllm.train.guard.rules import Memory
from tests import tiny
from tests.train.saved import MODEL, ONE, Case, abstract, bits, make_state, mesh_of

ROOT = Path(__file__).parents[2]
NUM_KILLS = int(os.environ.get("NUM_KILLS", "1"))
NUM_PLACES = int(os.environ.get("NUM_PLACES", "1"))


@pytest.fixture
def case(tmp_path) -> Case:
    return Case(tmp_path / "checkpoints")


def test_a_state_comes_back_bit_for_bit(case: Case):
    assert case.open().restore(abstract(make_state())) is None
    case.save(3)
    state, meta = case.open().restore(abstract(make_state()))
    assert bits(state) == bits(make_state(3))
    assert (meta.step, meta.optimizer_step, meta.data_cursor, meta.extra) == (3, 3, 24, {"loss": 1.5})
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, make_state())
    assert meta.bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert not case.said


def test_names_on_disk_count_layers_one_by_one(case: Case):
    case.save(1)
    names = set(case.checkpoints.catalogue.meta(place(1, 0)).leaves)
    layers = {f"{head}.layers.{layer}.mlp.up" for head in ("params", "optimizer.adam.mu") for layer in range(3)}
    others = {"params.embedding.weight", "optimizer.adam.mu.embedding.weight", "step", "optimizer_step"}
    memory = {f"guard.{field.name}" for field in dataclasses.fields(Memory)}
    assert names == layers | others | memory | {"learning_rate_scale", "loss_scale.scale", "loss_scale.clean_steps"}


def test_the_state_may_be_donated_as_soon_as_save_returns(case: Case):
    state = make_state(5)
    case.checkpoints.save(state, 5, 0, 0)
    jax.jit(lambda state: jax.tree.map(lambda x: x * 0 + 7, state), donate_argnums=0)(state)
    case.checkpoints.wait()
    assert case.restored() == 5


def test_parameters_are_restored_alone(case: Case):
    case.save(4)
    for name in [name for name in LocalStorage(case.path).list() if "/training/" in name]:
        (case.path / name).unlink()
    params, meta = case.open().restore_params(abstract(make_state()).params)
    assert meta.step == 4
    assert bits(params) == bits(make_state(4).params)


def test_any_mesh_reads_what_any_other_wrote(case: Case):
    meshes = [ONE, mesh_of(fsdp=8), mesh_of(data=2, fsdp=4)]
    for step, mesh in enumerate(meshes):
        case.checkpoints.save(make_state(step, mesh), step, 0, 0)
        case.checkpoints.wait()
        for other in meshes:
            wanted = abstract(make_state(0, other))
            restored = case.open().restore(wanted)
            assert restored is not None
            assert restored[1].step == step
            assert bits(restored[0]) == bits(make_state(step))
            assert jax.tree.map(lambda x: x.sharding, restored[0]) == jax.tree.map(lambda x: x.sharding, wanted)
    assert not case.said


@pytest.mark.parametrize("turn", [1, -1])
def test_a_real_state_changes_its_mesh(tmp_path, turn):
    """Between stages and other axes, both ways."""
    model = msgspec.structs.replace(tiny.MODEL, num_layers=4)
    meshes = [MeshConfig(pipe=2, fsdp=2), MeshConfig(data=2, fsdp=1, tensor=2)][::turn]
    first, second = (tiny.program(tiny.experiment(model, mesh=mesh)) for mesh in meshes)
    random = np.random.default_rng(0)
    storage, config = LocalStorage(tmp_path), CheckpointConfig()
    with jax.set_mesh(first.mesh):
        state = jax.tree.map(
            lambda x: jax.device_put(random.integers(0, 100, x.shape).astype(x.dtype), x.sharding),
            first.abstract_state(),
        )
        writer = Checkpoints(storage, model, config)
        writer.save(state, 1, 0, 0)
        writer.wait()
    with jax.set_mesh(second.mesh):
        wanted = second.abstract_state()
        restored = Checkpoints(storage, model, config).restore(wanted)
    assert restored is not None
    assert bits(restored[0]) == bits(state)
    assert jax.tree.map(lambda x: x.sharding, restored[0]) == jax.tree.map(lambda x: x.sharding, wanted)


def test_the_copy_in_host_memory_is_not_repeated_by_replicas():
    mesh = mesh_of(data=2, fsdp=4)
    copies = cut(MODEL, make_state(0, mesh))
    for name, array in copies.items():
        assert {shard.data.sharding.memory_kind for shard in array.addressable_shards} == {"pinned_host"}
        held = sum(shard.data.nbytes for shard in array.addressable_shards)
        assert held == array.nbytes if array.ndim else True, name


# Damage


def flip(content: bytes, at: float) -> bytes:
    place = int(at * len(content) * 8)
    changed = bytearray(content)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


DAMAGES = {
    "flip": flip,
    "truncate": lambda content, at: content[: int(at * len(content))],
    "zero": lambda content, at: content[: int(at * len(content))] + bytes(len(content) - int(at * len(content))),
    "delete": lambda content, at: None,
}


def damaged(case: Case, name: str, kind: str, at: float) -> tuple[str, int]:
    """What a restore makes of one damaged file: (fallen back, whole or stopped, sentences said)."""
    path, content = case.path / name, (case.path / name).read_bytes()
    changed = DAMAGES[kind](content, at)
    case.said.clear()
    try:
        path.unlink() if changed is None else path.write_bytes(changed)
        step = case.restored()
    except ValueError as error:
        assert str(error).count("\n") == 0
        return "stopped", len(case.said) + 1
    finally:
        path.write_bytes(content)
    return {1: "fallen back", 2: "whole"}[step], len(case.said)


def test_no_damage_is_restored_silently(case: Case):
    case.save(1)
    case.save(2)
    case.checkpoints.catalogue.mark_good(2, 0, 2)
    random = np.random.default_rng(0)
    counts: Counter[tuple[str, str]] = Counter()
    names = LocalStorage(case.path).list(place(2, 0))
    assert len(names) > 20
    for name in names:
        for kind in DAMAGES:
            for at in random.random(NUM_PLACES if kind != "delete" else 1):
                result, said = damaged(case, name, kind, at)
                assert said or result == "whole", (name, kind, at)
                counts[kind, result] += 1
    assert counts["delete", "fallen back"] >= 5, counts
    assert counts["flip", "fallen back"] >= 5, counts
    assert {result for _, result in counts} == {"whole", "fallen back"}, counts


def test_every_bit_of_the_arrays_is_guarded(case: Case):
    """The files that hold nothing but values: a flip there is what orbax does not see."""
    case.save(1)
    case.save(2)
    files = [name for name in LocalStorage(case.path).list(place(2, 0)) if "/d/" in name]
    largest = max(files, key=lambda name: (case.path / name).stat().st_size)
    results = Counter(damaged(case, largest, "flip", at)[0] for at in np.random.default_rng(1).random(5))
    assert results == {"fallen back": 5}


def test_without_a_whole_checkpoint_training_does_not_begin_again(case: Case):
    case.save(1)
    meta = case.path / place(1, 0) / "meta.json"
    content = meta.read_bytes()
    for changed in (flip(content, 0.5), b"", None):
        meta.unlink() if changed is None else meta.write_bytes(changed)
        with pytest.raises(ValueError, match=r"no checkpoint can be restored.*does not begin again at step 0"):
            case.open().restore(abstract(make_state()))
    assert "never finished, or has lost its meta.json" in case.said[-1]


def test_an_unfinished_first_checkpoint_is_a_start_at_step_0(case: Case):
    (case.path / place(1, 0) / "params.orbax-checkpoint-tmp").mkdir(parents=True)
    (case.path / place(1, 0) / "params.orbax-checkpoint-tmp" / "part").write_bytes(b"half")
    assert case.open().restore(abstract(make_state())) is None
    case.save(2, attempt=1)
    assert {path.name for path in case.path.iterdir()} == {place(2, 1), "committed.json"}


def test_another_model_is_refused(case: Case):
    case.save(1)
    other = dataclasses.replace(abstract(make_state()), optimizer={})
    assert case.open().restore(other) is not None  # a part of what was saved may be asked for
    wrong = abstract(make_state())
    wrong.params["embedding"]["weight"] = jax.ShapeDtypeStruct(
        (32, 4), "float32", sharding=NamedSharding(ONE, PartitionSpec())
    )
    with pytest.raises(ValueError, match=r"params.embedding.weight is float32\[32, 8\].*has float32\[32, 4\]"):
        case.open().restore(wrong)


def test_a_newer_format_is_refused(case: Case, monkeypatch):
    monkeypatch.setattr(catalogue, "FORMAT_VERSION", 99)
    case.checkpoints.catalogue.commit(
        catalogue.Meta(
            format_version=99, step=1, attempt=0, optimizer_step=1, data_cursor=0, time=0, bytes=0, leaves={}
        )
    )
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"format_version = 99.*update jaxllm"):
        case.open().restore(abstract(make_state()))


# Rolling back


def test_a_rollback_passes_by_what_is_not_good(case: Case):
    case.config = CheckpointConfig(keep=9)
    case.checkpoints = case.open()
    for step in (10, 20, 30, 40):
        case.save(step)
    book = case.checkpoints.catalogue
    assert [entry.step for entry in book.mark_good(35, 0, 25)] == [20, 10]
    assert case.restored() == 40
    assert case.restored(good=True) == 20
    assert case.restored(good=True, at_or_before=15) == 10
    book.quarantine([entry for entry in book.entries() if entry.step > 20], "the loss spiked at step 33", 1)
    assert case.restored() == 20
    case.save(30, attempt=1)
    assert case.restored() == 30
    assert [(entry.step, entry.attempt, bool(entry.quarantine)) for entry in book.entries()] == [
        (30, 1, False),
        (40, 0, True),
        (30, 0, True),
        (20, 0, False),
        (10, 0, False),
    ]
    with pytest.raises(ValueError, match="no good checkpoint at or before step 5 can be restored"):
        case.restored(good=True, at_or_before=5)


def test_retention_follows_the_config(case: Case):
    case.config = CheckpointConfig(keep=1, keep_every=20, keep_good=1)
    case.checkpoints = case.open()
    for step in (10, 20, 30, 40, 50):
        case.save(step)
        case.checkpoints.catalogue.mark_good(step, 0, step - 15)
    assert sorted(path.name for path in case.path.glob("step-*")) == [place(step, 0) for step in (20, 40, 50)]


# Faults while writing


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax's own threads
def test_a_full_disk_stops_nothing(case: Case):
    """A limit of the size of files stands in for a full disk."""
    case.save(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        case.checkpoints.save(make_state(2), 2, 0, 0)
        case.checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (outcome,) = case.checkpoints.poll()
    assert "File too large" in outcome.error
    assert len(case.said) == 1
    assert case.said[0].startswith("the checkpoint of step 2 was not saved (")
    assert [path.name for path in case.path.glob("step-*")] == [place(1, 0)]
    assert case.restored() == 1
    case.save(3)
    assert case.restored() == 3


def test_a_write_that_does_not_read_back_is_no_checkpoint(case: Case, monkeypatch):
    case.save(1)
    write = arrays.write

    def write_badly(directory: str, values) -> None:
        write(directory, {name: value + 1 if name == "step" else value for name, value in values.items()})

    monkeypatch.setattr(arrays, "write", write_badly)
    case.checkpoints.save(make_state(2), 2, 0, 0)
    case.checkpoints.wait()
    (outcome,) = case.checkpoints.poll()
    assert "step read back from step-00000002.attempt-0000 is not what was written" in outcome.error
    assert case.restored() == 1


FOREVER = """
import itertools, sys
from pathlib import Path
from tests.train.saved import Case
case = Case(Path(sys.argv[1]))
first = (case.restored() if case.checkpoints.catalogue.begun() else 0) + 1
attempt = case.checkpoints.catalogue.next_attempt()
for step in itertools.count(first):
    case.save(step, attempt)
    print(step, flush=True)
"""


def test_a_kill_at_any_instant_loses_no_finished_checkpoint(case: Case):
    """Saves follow each other without a pause, so nearly every kill falls into a write."""
    random, last = np.random.default_rng(0), 0
    for _ in range(NUM_KILLS):
        command = [sys.executable, "-c", FOREVER, str(case.path)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            first = int(process.stdout.readline())
            time.sleep(random.random())
            process.kill()
            newest = max([first, *map(int, process.stdout.read().split())])
        assert first == last + 1
        last = case.restored()
        assert newest <= last <= newest + 1


TWO = """
import sys
from pathlib import Path
import jax
import numpy as np
jax.config.update("jax_cpu_collectives_implementation", "gloo")
me = int(sys.argv[2])
here = f"127.0.0.1:{sys.argv[3]}"
jax.distributed.initialize(here, 2, me, coordinator_bind_address=here, heartbeat_timeout_seconds=10)
from jax.experimental.multihost_utils import sync_global_devices
from tests.train.saved import Case, abstract, make_state, mesh_of
mesh = mesh_of(fsdp=2)
case = Case(Path(sys.argv[1]))
with jax.set_mesh(mesh):
    def restored():
        state, meta = case.open().restore(abstract(make_state(0, mesh)))
        for found, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(make_state(meta.step, mesh))):
            for one, other in zip(found.addressable_shards, wanted.addressable_shards):
                assert np.asarray(one.data).tobytes() == np.asarray(other.data).tobytes()
        return meta.step
    assert case.open().restore(abstract(make_state(0, mesh))) is None
    for step in (1, 2):
        case.checkpoints.save(make_state(step, mesh), step, 0, 0)
    case.checkpoints.wait()
    errors = [outcome.error for outcome in case.checkpoints.poll()]
    assert errors == ["", ""], errors
    sync_global_devices("saved")
    print(restored(), flush=True)
    sync_global_devices("restored")
    if me == 0:
        largest = max(case.path.glob("step-00000002*/params/**/d/*"), key=lambda path: path.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
    sync_global_devices("damaged")
    print(restored(), case.said, flush=True)
"""


def test_two_processes_save_and_restore_together(case: Case):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")} | {"XLA_FLAGS": ""}
    commands = [[sys.executable, "-c", TWO, str(case.path), str(me), str(port)] for me in range(2)]
    options = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **options) for command in commands]
    try:
        ended = [process.communicate(timeout=120) for process in processes]
        for process, (out, err) in zip(processes, ended, strict=True):
            assert process.returncode == 0, err[-3000:]
            first, second = out.splitlines()[-2:]  # gloo says on which rank it is
            assert first == "2"
            assert second.startswith("1 ['checkpoint step-00000002.attempt-0000 is left out: ")
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert case.restored() == 1  # by one process, what two have written
