"""Mistakes end with exit 2 and one sentence that names field, value and fix; a bug keeps its traceback."""

import json
import pathlib

import msgspec
import pytest

import jaxllm
from jaxllm import __main__, cli
from jaxllm.config import RunConfig, dump, load, resolved
from jaxllm.train import loop


def sentence(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """The one line that a command complains with."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    err = capsys.readouterr().err
    assert stopped.value.code == code, err
    assert err.count("\n") == 1 and err.startswith("jaxllm: "), err
    return err


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (["--model.num_layer", "3"], ["model.num_layer", "num_layers"]),
        (["--optim.learning_rate", "fast"], ["optim.learning_rate", "fast"]),
        (["--mesh.tensor", "8"], ["mesh.tensor = 8", "num_heads = 4"]),
        (["--mesh.tensor", "4"], ["mesh.tensor = 4", "num_kv_heads = 2"]),
        (["--mesh.fsdp", "16"], ["mesh.fsdp = 16", "16 devices", "8"]),
        (["--mesh.fsdp", "3"], ["mesh.fsdp = 3", "8 devices"]),
        (["--data.phases.0.batch_size", "6"], ["batch_size = 6", "mesh.fsdp"]),
        (["--mesh.pipe", "4"], ["mesh.pipe = 4", "num_layers = 2"]),
        (["--mesh.context", "8", "--data.phases.0.sequence_length", "24"], ["sequence_length = 24", "mesh.context"]),
        (["--data.store", "nowhere"], ["data.store", "nowhere", "data build"]),
        (["--model.vocab_size", "100"], ["model.vocab_size = 100", "257"]),
        (["--optim.schedule.warmup_steps", "24"], ["warmup_steps = 24"]),
        (["--mesh.slices", "3"], ["mesh.slices = 3", "mesh.data"]),
        (["--model.attention.kernel", "cudnn"], ["model.attention.kernel", "cudnn", "auto"]),
        (["--run.directory", "foxes.txt"], ["run.directory", "foxes.txt", "directory"]),
        (["--run.directory", 300 * "a"], ["run.directory", "too long", "name another"]),
        (["--run.directory", "/proc/nothing"], ["run.directory = '/proc/nothing'", "name another"]),
        (["--data.store", "foxes.txt"], ["data.store = 'foxes.txt'", "data build"]),
        (["oops"], ["oops", "--section.field"]),
        (["--run.name"], ["--run.name", "value"]),
    ],
)
def test_a_mistake_gets_one_sentence(
    home: pathlib.Path,
    override: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(home)
    before = sorted(home.rglob("*"))
    err = sentence(["train", "tiny.toml", *override], capsys)
    assert all(word in err for word in words), err
    assert sorted(home.rglob("*")) == before


def test_bad_texts_and_tokenizers(
    home: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = str(home / "tiny.toml")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"good text\ncaf\xe9\n")
    (tmp_path / "short.txt").write_text("".join(f"{line}\n" for line in range(40)))
    (tmp_path / "broken.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    source = ["--data.store", "", "--data.sources.0.path"]
    assert "missing.txt" in sentence(["train", config, *source, "missing.txt"], capsys)
    assert "empty.txt" in sentence(["train", config, *source, "empty.txt"], capsys)
    err = sentence(["train", config, *source, "latin.txt"], capsys)
    assert "latin.txt" in err and "13" in err
    err = sentence(["train", config, *source, "short.txt"], capsys)
    assert "batch_size = 8" in err and "tokens" in err
    tokenizer = ["--data.tokenizer.type", "sentencepiece", "--data.tokenizer.path", "broken.model"]
    err = sentence(["train", config, "--data.store", "", *tokenizer], capsys)
    assert "broken.model" in err


def test_a_run_of_another_config_is_refused(
    home: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    short = ["train", "tiny.toml", "--run.name", "mine", "--data.phases.0.steps", "5"]
    started = load("tiny.toml", {"run.name": "mine", "data.phases.0.steps": 5})
    (home / "runs" / "mine").mkdir(parents=True)
    (home / "runs" / "mine" / "config.toml").write_text(dump(resolved(started)))
    err = sentence([*short, "--model.d_model", "64", "--log.interval", "5"], capsys)
    assert "model.d_model" in err and "log.interval" in err and "runs/mine" in err


def test_a_run_of_a_preset_is_compared_with_what_it_was_started_with(tmp_path: pathlib.Path) -> None:
    data = {"phases": [{"sequence_length": 32, "batch_size": 8, "steps": 24}]}
    started = jaxllm.load_experiment({"model": {"preset": "llama3.2-1b"}, "data": data})
    (tmp_path / "config.toml").write_text(dump(resolved(started)))
    loop._check_run(tmp_path, started, force=False)
    with pytest.raises(ValueError, match=r"run\.seed = 1 \(was 0\)"):
        loop._check_run(tmp_path, msgspec.structs.replace(started, run=RunConfig(seed=1)), force=False)


@pytest.mark.parametrize(("command", "code"), [("train", 75), ("show", 130)])
def test_an_interrupt_before_anything_began_gets_a_sentence(
    command: str, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", interrupted)
    monkeypatch.setattr("sys.argv", ["jaxllm", command])
    with pytest.raises(SystemExit) as stopped:
        __main__.run()
    assert (stopped.value.code, capsys.readouterr().err) == (code, "jaxllm: interrupted\n")


def test_show_wants_a_device_at_least(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--devices 0: give 1 or more" in sentence(["show", "--preset", "gpt2", "--devices", "0"], capsys)


def test_show_counts_a_preset_as_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    def memory(*overrides: str) -> dict[str, int]:
        with pytest.raises(SystemExit):
            cli.main(["show", "--preset", "gpt2", "--json", *overrides])
        return json.loads(capsys.readouterr().out)["memory_per_device"]

    plain = memory()
    assert plain["optimizer"] == 2 * plain["parameters"]
    assert memory("--train.precision.parameters", "bfloat16")["parameters"] == plain["parameters"] // 2
    assert memory("--optim.optimizer.type", "muon")["optimizer"] < plain["optimizer"]


def test_a_bug_keeps_its_traceback(home: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)

    def broken(*_: object) -> None:
        int("planted")  # a ValueError, but not one that jaxllm raises

    monkeypatch.setattr(loop, "assemble", broken)
    with pytest.raises(ValueError, match="planted"):
        cli.main(["train", "tiny.toml", "--run.name", "bug"])
