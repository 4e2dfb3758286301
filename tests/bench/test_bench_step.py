"""The benchmark of the step: what it returns holds together, and a peer takes turns with it."""

import json
import sys

import msgspec
import pytest
import tiny

from jaxllm.bench import peer, step
from jaxllm.config import (
    BytesTokenizer,
    HuggingFaceTokenizer,
    MeshConfig,
    Muon,
    OptimConfig,
    PrecisionConfig,
    SentencePieceTokenizer,
)
from jaxllm.roofline.conventions import flops_per_token
from jaxllm.roofline.hardware import find_chip
from jaxllm.roofline.transformer import parameters

EXPERIMENT = tiny.experiment(msgspec.structs.replace(tiny.MODEL, num_layers=1), mesh=MeshConfig(fsdp=8))

FAKE_PEER = """
import json, sys

assert not any(name.split(".")[0] in ("jax", "jaxllm") for name in sys.modules)
description = json.loads(sys.stdin.readline())
print(json.dumps({"name": "a fake", "parameters": description["parameters"] + EXTRA}), flush=True)
for number, line in enumerate(sys.stdin):
    assert line == "step\\n"
    if number == LAST:
        sys.exit("out of\\nbreath")
    print(json.dumps({"seconds": 1.0 + number, "loss": 9.0 - number}), flush=True)
open(sys.argv[0] + ".ended", "w").write("by itself")
"""


def fake_peer(tmp_path, extra=0, last=-1):
    script = tmp_path / "fake_peer.py"
    script.write_text(FAKE_PEER.replace("EXTRA", str(extra)).replace("LAST", str(last)))
    return script


def in_dtype(compute):
    train = msgspec.structs.replace(EXPERIMENT.train, precision=PrecisionConfig(compute=compute))
    return msgspec.structs.replace(EXPERIMENT, train=train)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("peer")


@pytest.fixture(scope="module")
def result(directory):
    """Everything at once, as each measurement compiles a step: MFU as of a v5p, beside a peer."""
    chip = find_chip("v5p")
    assert chip is not None
    script = fake_peer(directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "find_chip", lambda kind: {"cpu": chip}[kind])
        return step.measure(in_dtype("bfloat16"), num_steps=2, peer=sys.executable, peer_script=script)


def test_what_is_measured_holds_together(result):
    assert result["tokens_per_step"] == result["batch_size"] * result["sequence_length"] == 16 * 32
    low, high = result["step_seconds_quartiles"]
    assert 0 < low <= result["step_seconds"] <= high
    assert result["tokens_per_second"] * result["step_seconds"] == pytest.approx(512)
    assert result["steps"] == 2 and result["devices"] == 8 and result["mesh"] == {"fsdp": 8}
    assert result["parameters"] == parameters(EXPERIMENT.model).total
    assert min(result["trace_seconds"], result["compile_seconds"]) > 0
    assert result["loss"] < result["first_loss"], "four steps on one batch lower its loss"


def test_memory_is_of_the_state_and_more(result):
    state = 3 * 4 * result["parameters"] / 8
    assert state < result["argument_bytes"] < 2 * state, "parameters and two moments in float32, and the batch"
    assert result["temporary_bytes"] > 0
    assert result["peak_memory_bytes"] > 8 * result["argument_bytes"]


def test_it_is_json_and_text(result):
    assert json.loads(json.dumps(result)) == result
    lines = step.text(result).splitlines()
    assert any("8 x cpu: fsdp 8" in line for line in lines)
    assert any("16 x 32 = 512 tokens" in line for line in lines)


def test_mfu_is_a_share_of_all_devices_peak_with_its_convention(result):
    flops = flops_per_token(EXPERIMENT.model, 32, result["mfu_convention"])
    assert result["mfu"] == pytest.approx(result["tokens_per_second"] / 8 * flops / 459e12)
    assert "(torchtitan: 6 x all but an untied embedding" in step.text(result)


def test_a_peer_takes_turns(result, directory):
    other = result["peer"]
    assert other["name"] == "a fake"
    # the first two of its steps, of 1 and 2 seconds, are warm-up; those of 3 and 4 count
    assert other["step_seconds"] == 3.5
    assert other["tokens_per_second"] == pytest.approx(512 / 3.5)
    assert (other["first_loss"], other["loss"]) == (9.0, 6.0)
    low, high = result["step_seconds_quartiles"]
    one, another = 1.5 * low - 0.5 * high, 1.5 * high - 0.5 * low
    pairings = [(3 / one + 4 / another) / 2, (3 / another + 4 / one) / 2]
    assert any(other["ratio"] == pytest.approx(pairing) for pairing in pairings)
    assert (directory / "fake_peer.py.ended").read_text() == "by itself"
    assert f"{other['ratio']:.2f} times the peer's speed" in step.text(result)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"last": 0}, "the peer ended: breath"), ({"extra": 1}, "parameters, not .*; the two do not compare")],
)
def test_a_peer_that_fails_is_one_sentence(tmp_path, settings, sentence):
    description = peer.describe(EXPERIMENT, EXPERIMENT.model)
    with (
        pytest.raises(ValueError, match=f"^--peer {sys.executable}: .*{sentence}$"),
        peer.start(sys.executable, fake_peer(tmp_path, **settings), description) as other,
    ):
        other.step()


def test_the_torch_peer_says_what_is_missing(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('no torch here')")
    script = tmp_path / "torch_step.py"
    script.write_text(peer.TORCH.read_text())
    with (
        pytest.raises(ValueError, match=r"the peer ended: ModuleNotFoundError: no torch here$"),
        peer.start(sys.executable, script, {}),
    ):
        pass


def test_no_such_interpreter(tmp_path):
    with (
        pytest.raises(ValueError, match="nowhere: No such file or directory; name a Python interpreter"),
        peer.start(str(tmp_path / "nowhere"), peer.TORCH, {}),
    ):
        pass


def test_what_a_peer_has_no_counterpart_of_is_refused():
    narrow = msgspec.structs.replace(tiny.MODEL.default_block, mlp=type(tiny.MODEL.mlp)(d_ff=8))
    muon = msgspec.structs.replace(EXPERIMENT, optim=OptimConfig(optimizer=Muon()))
    for experiment, model, field in (
        (EXPERIMENT, msgspec.structs.replace(tiny.MODEL, prefix=(narrow,)), "model.prefix"),
        (muon, tiny.MODEL, "optim.optimizer.type"),
        (in_dtype("float16"), tiny.MODEL, "train.precision.compute"),
    ):
        with pytest.raises(ValueError, match=field):
            peer.describe(experiment, model)


@pytest.mark.parametrize(
    ("tokenizer", "size"), [(SentencePieceTokenizer(vocab_size=1000), 1024), (BytesTokenizer(), 384)]
)
def test_the_vocabulary_is_the_tokenizer_s_where_the_config_knows_it(tokenizer, size):
    assert step.known_vocabulary(with_tokenizer(tokenizer)).vocab_size == size


def test_a_vocabulary_that_only_a_file_knows_must_be_given():
    with pytest.raises(ValueError, match=r"add --model\.vocab_size and the tokenizer's size"):
        step.measure(with_tokenizer(HuggingFaceTokenizer(path="x")))


def with_tokenizer(tokenizer):
    model = msgspec.structs.replace(EXPERIMENT.model, vocab_size=0)
    data = msgspec.structs.replace(EXPERIMENT.data, tokenizer=tokenizer)
    return msgspec.structs.replace(EXPERIMENT, model=model, data=data)


def test_no_steps_measure_nothing():
    with pytest.raises(ValueError, match="--steps 0"):
        step.measure(EXPERIMENT, num_steps=0)
