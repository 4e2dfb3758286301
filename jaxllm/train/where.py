"""From a step of a run back to the documents that it trained on."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from jaxllm.data.batches import Batches
from jaxllm.data.store import Store, open_store
from jaxllm.storage import Place, open_storage
from jaxllm.train import digests
from jaxllm.train.directory import CONFIG, read_config
from jaxllm.train.guard.ledger import Ledger, read
from jaxllm.train.metrics import METRICS, read_metrics


def where(directory: Place, step: int) -> dict[str, Any]:
    """What a step's batch was made of.

    Args:
        directory: of the run.
        step: as metrics.jsonl counts, from 1.

    Returns:
        step, phase (from 0), cursor (the batch's first sample), digest, logged (whether the run logged this very digest
        for the step; None where the step has no record) and rows: sample, source, epoch (of the source), bin, and its
        documents, each with the range of its tokens that the row holds, the end not included.

    Raises:
        ValueError: the directory holds no run, or the run has no such step.
    """
    storage = open_storage(directory)
    experiment = read_config(storage)
    if experiment is None:
        raise ValueError(f"{directory} holds no run: it has no {CONFIG}; name a directory such as runs/quickstart")
    data = experiment.data
    recorded = read_metrics(directory) if METRICS in storage.list(METRICS) else []
    records = {record["step"]: record for record in recorded}
    if not 1 <= step <= data.num_steps:
        raise ValueError(f"step {step}: the run has steps 1 to {data.num_steps}")
    store = open_store(data)
    batches = Batches(store, data, skipped=Ledger(read(storage)).skipped)
    record = records.get(step)
    cursor = int(record["data_cursor"]) if record else batches.cursor(step - 1)
    batch = batches.batch(cursor)
    digest = _digest(batch)
    described = describe(store, batches, range(cursor, cursor + len(batch["tokens"])))
    logged = record["batch_digest"] == digest if record else None
    phase = batches.locate(cursor).phase
    return {"step": step, "phase": phase, "cursor": cursor, "digest": digest, "logged": logged, "rows": described}


def describe(store: Store, batches: Batches, samples: Iterable[int]) -> list[dict[str, Any]]:
    """Where samples come from: of each, in their order, what `where` says of a row."""
    streams, rows, touched = store.streams("train"), [], defaultdict[int, set[int]](set)
    for sample in samples:
        place, length = batches.locate(sample), batches.length(sample)
        pieces = list(_pieces(streams[place.source].offsets, place.bin * length, (place.bin + 1) * length))
        touched[place.source] |= {document for document, _, _ in pieces}
        rows.append((sample, place, pieces))
    names = {source: store.identifiers("train", source, documents) for source, documents in touched.items()}
    return [
        {
            "sample": sample,
            "source": store.manifest.sources[place.source].name,
            "epoch": place.epoch,
            "bin": place.bin,
            "documents": [{"document": names[place.source][number], "tokens": span} for number, *span in pieces],
        }
        for sample, place, pieces in rows
    ]


def _pieces(offsets: np.ndarray, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Of each document that stream[start:stop] holds tokens of: its number, and the first and last of them, in it."""
    document = int(np.searchsorted(offsets, np.uint64(start), side="right")) - 1
    while document + 1 < len(offsets) and int(offsets[document]) < stop:
        begin, end = int(offsets[document]), int(offsets[document + 1])
        if end > begin:
            yield document, max(start, begin) - begin, min(stop, end) - begin
        document += 1


def _digest(batch: dict[str, np.ndarray]) -> str:
    """The digest that the step computes on the devices."""
    parts = [(2 * index + 1) * digests.host_digest(batch[name]) for index, name in enumerate(sorted(batch))]
    return digests.text(np.sum(parts, axis=0, dtype=np.uint32))


def text(found: dict[str, Any]) -> str:
    """The same as lines for people."""
    logged = {True: "as logged", False: "NOT what was logged: the data have changed", None: "the step was not logged"}
    lines = [
        f"step {found['step']}: data.phases.{found['phase']}, samples from {found['cursor']}, "
        f"digest {found['digest']}, {logged[found['logged']]}"
    ]
    for row in found["rows"]:
        lines.append(f"sample {row['sample']}  {row['source']}, epoch {row['epoch']}, bin {row['bin']}")
        lines += [f"    {one['document']}  tokens {one['tokens'][0]} to {one['tokens'][1]}" for one in row["documents"]]
    return "\n".join(lines)
