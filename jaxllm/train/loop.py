"""A run, from its experiment to its report.

processes -> lock -> store -> mesh -> program -> state (restored or made) -> steps -> evaluation, sample, report
                                                          ^                  |
                                                          +-- the guard: a good checkpoint, other data
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax

from jaxllm.config import Experiment, dump, refuse_changes, resolved
from jaxllm.data.batches import Batches
from jaxllm.data.store import open_store
from jaxllm.storage import LocalStorage, Place, is_url, open_storage
from jaxllm.train import environment, preflight, processes, programs
from jaxllm.train.assemble import assemble, resolve_vocabulary
from jaxllm.train.attempt import Attempt, Run
from jaxllm.train.catalogue import Catalogue
from jaxllm.train.console import Console
from jaxllm.train.directory import CHECKPOINTS, read_config
from jaxllm.train.guard.host import Guard
from jaxllm.train.guard.policy import resolve
from jaxllm.train.initial import open_origin
from jaxllm.train.lock import Lock
from jaxllm.train.loggers import check_loggers
from jaxllm.train.signals import Stop, stop_on_signals
from jaxllm.train.trouble import Trouble


def train(experiment: Experiment, force: bool = False, stop: Stop | None = None, trouble: Trouble | None = None) -> Run:
    """Train an experiment to its end, or go on with its run where it stopped.

    Args:
        experiment: what to train; its `run.directory` says where.
        force: go on with a run whatever its old config was, begin again where its checkpoints are lost, and try memory
            that seems too small.
        stop: tells of signals; by default they are watched for while the run lasts.
        trouble: disturbs the run, for benchmarks and tests.

    Raises:
        ValueError: one sentence, when the experiment does not fit the devices, the data or the run that is there, or
            when another process trains this run.
    """
    directory = experiment.run.path if is_url(experiment.run.path) else Path(experiment.run.path)
    storage = open_storage(directory, "run.directory")
    if experiment.run.deterministic:
        environment.deterministic()
    processes.join()
    with ExitStack() as stack:
        if experiment.run.compilation_cache:
            stack.enter_context(programs.kept(experiment.run.compilation_cache))
        stop = stop or stack.enter_context(stop_on_signals())
        console = stack.enter_context(Console(quiet=not processes.is_first()))
        lock = Lock(storage, f"run.directory = {str(directory)!r}")
        stack.callback(lock.release)
        stop.last_words += [console.close, lock.release]

        check_loggers(experiment.log.loggers, directory)
        processes.agree({"the config": dump(resolved(experiment))})
        policy = resolve(experiment.guard.policy, experiment.checkpoint, experiment.data)

        def begin() -> int:
            with _usable(directory):
                _check_run(directory, experiment, force)
            open_store(experiment.data, _progress(console))
            return 0

        processes.on_first(begin)
        store = open_store(experiment.data)
        processes.agree({"the data": store.digest})
        model = resolve_vocabulary(experiment.model, store.tokenizer.vocab_size)
        program = assemble(experiment, model)
        if not force:
            limit = preflight.limit_of(jax.local_devices())
            preflight.check(experiment, model, dict(program.mesh.shape), limit)
        batches = Batches(store, experiment.data)
        guard = Guard(experiment, policy, storage, store.digest, console.note)
        follow = experiment.guard.follow
        followed = guard.followed(open_storage(follow, "guard.follow"), experiment) if follow else None
        origin = open_origin(experiment, model, store.manifest.tokenizer.sha256, console.note)

        def take() -> int:
            with _usable(directory):
                lock.acquire(console.note)
            return 0

        processes.on_first(take)  # as late as this, so that mistakes leave nothing behind
        with jax.set_mesh(program.mesh):
            return Attempt(
                experiment,
                directory,
                model,
                store,
                batches,
                program,
                console,
                stop,
                lock,
                origin,
                guard,
                followed,
                force,
                trouble,
            ).run()


@contextmanager
def _usable(directory: Place) -> Iterator[None]:
    """Take what a disk refuses of a run's directory, before anything is in it, for a mistake in its name."""
    try:
        yield
    except OSError as error:
        if is_url(directory):
            raise
        raise ValueError(
            f"run.directory = {str(directory)!r}: it cannot be used ({(error.strerror or str(error)).lower()}); "
            "name another, or another run.name"
        ) from None


def _check_run(directory: Place, experiment: Experiment, force: bool) -> None:
    """Refuse to mix two experiments in one directory.

    Raises:
        ValueError: naming what differs.
    """
    storage = open_storage(directory)
    if isinstance(storage, LocalStorage) and storage.root.exists() and not storage.root.is_dir():
        raise ValueError(f"run.directory = {str(directory)!r}: it is a file; name a directory")
    before = None if force else read_config(storage)
    if before is not None:
        saved = Catalogue(storage.below(CHECKPOINTS)).candidates()
        refuse_changes(before, experiment, str(directory), max((entry.step for entry in saved), default=0))


def _progress(console: Console) -> Any:
    """Says once what the building of the store is at."""
    said: set[str] = set()

    def progress(what: str, done: int, total: int) -> None:
        if what not in said:
            said.add(what)
            console.note(f"data: {what}")

    return progress
