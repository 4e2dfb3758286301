"""The dossier of a spike: what rose first, which texts had the highest losses, what was done.

It is made of the run's own records, so a kill in the middle of the trouble takes nothing from it. A signal has risen at
the first step from shortly before the onset on that is 6 robust standard deviations above its median before, and a
tenth of that median above it.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from jaxllm.data.batches import Batches
from jaxllm.data.store import Store
from jaxllm.storage import Place, open_storage
from jaxllm.train.guard.host import Alarm
from jaxllm.train.lines import plain
from jaxllm.train.metrics import read_metrics
from jaxllm.train.where import describe

NUM_SAMPLES = 8
"""Texts of a dossier."""

NUM_CHARACTERS = 400
"""Of a text."""

_BEFORE, _EARLIER = 64, 8
"""Records that a median is taken of; steps before the onset from which on signals are looked at."""

_SIGMAS, _SHARE = 6.0, 0.1


def name(alarm: Alarm, attempt: int) -> str:
    """The dossier's name in the run's directory."""
    return f"spikes/step-{alarm.step:08d}.attempt-{attempt:04d}.json"


def write(directory: Place, name: str, alarm: Alarm, action: str, store: Store, batches: Batches) -> None:
    """Write what is known of a spike into the run's directory; a full disk is no error."""
    found = dossier(alarm, read_metrics(directory), store, batches, action)
    with suppress(OSError):
        open_storage(directory).write(name, json.dumps(plain(found), ensure_ascii=False, indent=1).encode())


def dossier(
    alarm: Alarm, records: Sequence[Mapping[str, Any]], store: Store, batches: Batches, action: str
) -> dict[str, Any]:
    """What is known of a spike.

    Args:
        alarm: when, and why.
        records: of the run's steps, in their order.
        store: the tokens.
        batches: whose samples the records name.
        action: what is done.

    Returns:
        step, onset, flags, action; signals, a list of {signal, step, value, median}, the first to rise first; samples,
        a list of {sample, loss, step, source, documents, text}, the highest loss first.
    """
    return {
        "step": alarm.step,
        "onset": alarm.onset,
        "flags": list(alarm.flags),
        "action": action,
        "signals": risen(records, alarm.onset),
        "samples": _samples(records, alarm.onset, store, batches),
    }


def risen(records: Sequence[Mapping[str, Any]], onset: int) -> list[dict[str, Any]]:
    """The numbers of the records that rose about a step: which, when, how high, and their median before."""
    before = [record for record in records if record["step"] < onset - _EARLIER][-_BEFORE:]
    about = [record for record in records if record["step"] >= onset - _EARLIER]
    signals = sorted({name for record in about for name in record if _tells(name)})
    found = []
    for signal in signals:
        known = [record[signal] for record in before if _number(record.get(signal))]
        if len(known) < _BEFORE // 4:
            continue
        median = statistics.median(known)
        sigma = 1.4826 * statistics.median(abs(value - median) for value in known)
        limit = median + max(_SIGMAS * sigma, _SHARE * abs(median))
        for record in about:
            value = record.get(signal)
            if isinstance(value, float) and not value <= limit:  # what is no number has risen too
                found.append({"signal": signal, "step": record["step"], "value": value, "median": median})
                break
    return sorted(found, key=lambda one: one["step"])


def _tells(name: str) -> bool:
    """Whether a field of a record is a signal of the model's state."""
    return name.startswith(("loss/", "grad_norm", "update", "activation", "attention_logit")) or name in (
        "loss",
        "z_loss",
        "param_norm",
    )


def _number(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _samples(records: Sequence[Mapping[str, Any]], onset: int, store: Store, batches: Batches) -> list[dict[str, Any]]:
    """The texts of the highest losses."""
    worst = [
        (loss, int(sample), record["step"])
        for record in records
        if record["step"] >= onset
        for sample, loss in record.get("worst_samples", ())
    ]
    # What is no number is worse than any; one sample once.
    ranked = sorted(worst, key=lambda one: -one[0] if not math.isnan(one[0]) else -math.inf)
    chosen = list({sample: (loss, sample, step) for loss, sample, step in reversed(ranked)}.values())[::-1]
    chosen = chosen[:NUM_SAMPLES]
    found = []
    for (loss, sample, step), row in zip(
        chosen, describe(store, batches, [sample for _, sample, _ in chosen]), strict=True
    ):
        text = store.tokenizer.decode(int(token) for token in batches.tokens(sample))
        documents = [one["document"] for one in row["documents"]]
        found.append(
            {
                "sample": sample,
                "loss": loss,
                "step": step,
                "source": row["source"],
                "documents": documents,
                "text": text[:NUM_CHARACTERS],
            }
        )
    return found
