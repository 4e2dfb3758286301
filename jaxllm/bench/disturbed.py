"""One small run that something goes wrong in, and what became of it; see bench/spikes."""

import contextlib
import io
import math
import shutil
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxllm.bench.trouble import KINDS, make
from jaxllm.config import Experiment, load
from jaxllm.config.data import EMBEDDED
from jaxllm.data.steps import Range, union
from jaxllm.data.store import build
from jaxllm.train.attempt import Run
from jaxllm.train.directory import REPORT
from jaxllm.train.loop import train
from jaxllm.train.metrics import read_events, read_metrics

CLEAN = "none"
"""The kind of a run that nothing goes wrong in."""

TOLERANCE = 0.01
"""Above the twin's held-out loss, as a fraction of it."""

MAX_ROLLBACKS = 6

_CLIP_NORM, _TIGHTER = 1.0, 0.25

Policy = Literal["ladder", "palm"]
Outcome = dict[str, Any]


class Size(NamedTuple):
    """Of the runs.

    Attributes:
        steps: of a run.
        first: the first disturbed step, counted from 0.
        batch_size: samples of a step.
        sequence_length: tokens of a sample.
        d_model: of the model.
        num_layers: blocks.
        learning_rate: at its peak.
        patience: steps that a spike has to pass by itself.
        interval: steps between checkpoints, which are good when as many clean steps have followed; a policy goes back
            so many steps before a spike, or more.
        skip_batches: steps' worth of data that it leaves out at first.
        shrink: what the kinds' lengths are divided by.
    """

    steps: int = 400
    first: int = 210
    batch_size: int = 16
    sequence_length: int = 64
    d_model: int = 64
    num_layers: int = 2
    learning_rate: float = 5e-3
    patience: int = 5
    interval: int = 20
    skip_batches: int = 40
    shrink: int = 1

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.batch_size * self.sequence_length


class Runs:
    """Trains runs, one after the other, on one store and with each program compiled once.

    Args:
        place: an empty directory.
        size: of the runs.
        policy: of those that are guarded.
    """

    def __init__(self, place: Path, size: Size, policy: Policy) -> None:
        self._place, self._size, self._policy = place, size, policy
        build(self.experiment("unguarded", 0).data)

    def experiment(self, mode: str, seed: int) -> Experiment:
        """The experiment of a mode and a seed."""
        size, guarded = self._size, mode == "guard"
        phase = {"sequence_length": size.sequence_length, "batch_size": size.batch_size, "steps": size.steps}
        policy: dict[str, Any] = {"type": "off"}
        if guarded:
            policy = {"type": self._policy, "rewind_steps": size.interval, "skip_batches": size.skip_batches}
            policy["max_rollbacks"] = MAX_ROLLBACKS
        if guarded and self._policy == "ladder":
            policy |= {"lowered_steps": size.steps // 4, "calm_steps": size.steps // 4}
        tree = {
            "run": {"name": "spikes", "directory": str(self._place / "run"), "seed": seed},
            "model": {
                "d_model": size.d_model,
                "num_layers": size.num_layers,
                "attention": {"num_heads": 4, "num_kv_heads": 2},
                "mlp": {"d_ff": 8 * size.d_model // 3},
            },
            "data": {
                "sources": [{"path": EMBEDDED, "name": "python"}],
                "tokenizer": {"type": "bytes"},
                "store": str(self._place / "store"),
                "held_out_fraction": 0.01,
                "phases": [phase],
                "seed": seed,
            },
            "train": {"remat": "none", "precision": {"compute": "float32"}},
            "optim": {
                "learning_rate": size.learning_rate,
                "schedule": {"type": "cosine", "warmup_steps": size.steps // 10},
                "clip_norm": _TIGHTER if mode == "clip" else _CLIP_NORM,
            },
            "evaluation": {"batches": 32, "sample_tokens": 0},
            "watch": {"interval": 0},
            "checkpoint": {"interval": size.interval * guarded, "good_after": size.interval, "keep_good": 4},
            "guard": {
                "drop": guarded or mode == "skip",
                "policy": policy,
                "rules": {"window": 64, "patience": size.patience},
            },
        }
        return load(tree)

    def run(self, kind: str, mode: str, seed: int, twin: Outcome | None) -> Outcome:
        """Train one run.

        Args:
            kind: of trouble, or CLEAN.
            mode: of spikes.MODES.
            seed: of weights, data and trouble.
            twin: what became of the undisturbed and unguarded run; None for that run itself.

        Returns:
            kind, mode, seed; loss (held-out, at the end; NaN where the guard stopped the run), excess, recovered;
            stopped (why, or empty); reported (whether a stopped run has its report and dossiers); delay, None without
            alarm; alarms, false_alarms, rollbacks, rung, dropped, lost_tokens, skipped_tokens; losses, of all steps
            as texts of their bits.

        Raises:
            KeyboardInterrupt: a signal ended the run.
        """
        size, trouble = self._size, None
        if kind != CLEAN:
            length = max(KINDS[kind].length // size.shrink, 1)
            trouble = make(kind, size.first, length, size.batch_size, seed)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run = train(self.experiment(mode, seed), trouble=trouble)
        if run.interrupted:
            raise KeyboardInterrupt
        begins = size.first + 1 if trouble else size.steps + 1
        found = {"kind": kind, "mode": mode, "seed": seed, **_outcome(run, begins, size)}
        excess = found["loss"] / (twin or found)["loss"] - 1
        shutil.rmtree(run.directory)
        return {**found, "excess": excess, "recovered": excess <= TOLERANCE}


def _outcome(run: Run, begins: int, size: Size) -> Outcome:
    """What a run's own files say; `begins` is the first disturbed step, as metrics count."""
    events, records = read_events(run.directory), read_metrics(run.directory)
    spiked = [event for event in events if event["event"] == "spiked"]
    back = [event for event in events if event["event"] == "rolled_back"]
    # behind a rollback steps count anew
    early = [event for event in spiked if event["attempt"] == spiked[0]["attempt"] and event["step"] < begins]
    true = [event for event in spiked if event not in early]
    redone = sum(event["from_step"] - event["step"] for event in back)
    dropped = sum(bool(record["skipped"]) for record in records)
    skipped = union(Range(*event["skipped_samples"]) for event in back)
    papers = [REPORT, *(event["dossier"] for event in spiked)]
    return {
        "loss": next((float(event["loss"]) for event in events if event["event"] == "finished"), math.nan),
        "stopped": run.stopped,
        "reported": all((run.directory / paper).is_file() for paper in papers),
        "delay": true[0]["step"] - begins if true else None,
        "alarms": len(spiked),
        "false_alarms": len(early),
        "rollbacks": len(back),
        "rung": max((event["rung"] for event in back), default=0),
        "dropped": dropped,
        "lost_tokens": (redone + dropped) * size.tokens,
        "skipped_tokens": sum(stop - start for start, stop in skipped) * size.sequence_length,
        "losses": {record["step"]: float(record["loss"]).hex() for record in records},
    }
