"""What `jaxllm plan` prints."""

import json
import subprocess
import sys

import pytest
from planned import experiment

import jaxllm
from jaxllm import cli
from jaxllm.plan import report

CONFIG = "configs/llama3_8b.toml"


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", *arguments])
    return stop.value.code, *capsys.readouterr()


def test_the_answer_of_a_small_model():
    found = jaxllm.plan(experiment(), target="h100x8")
    text = report.text(found, 3)
    best = found.options[0]
    assert text.startswith("small on 8 chips of H100 SXM: 49,152 tokens a step, 1 billion tokens in all")
    assert f"best        {best.candidate.mesh.describe()}" in text
    assert f"{100 * found.mfu(best):.1f} % (palm: 6 x all parameters + full-square attention)" in text
    assert "$10.8 an hour and chip (How to Scale Your Model" in text
    assert sum(report.parts(best).values()) == pytest.approx(best.time.total)


def test_json_holds_what_the_text_says():
    found = jaxllm.plan(experiment(), target="v5e-8 x 2")
    data = json.loads(json.dumps(report.as_data(found, 2)))
    best = found.options[0]
    assert len(data["options"]) == 2
    assert data["target"]["chips"] == 16 and data["target"]["slices"] == 2
    assert data["options"][0]["step_seconds"] == best.time.total
    assert data["options"][0]["memory_bytes"]["total"] == best.total_memory
    assert data["options"][0]["mesh"] == dict(best.candidate.mesh.sizes)


def test_the_command(capsys):
    code, out, err = run(capsys, CONFIG, "--target", "h100x8", "--top", "2", "--tokens", "15e12", "--batch", "524288")
    assert (code, err) == (0, "")
    assert "8 chips of H100 SXM" in out and "15 trillion tokens" in out
    code, out, _ = run(capsys, CONFIG, "--target", "h100x8", "--json", "--batch", "524288")
    assert code == 0 and json.loads(out)["batch_tokens"] == 524288


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--target", "h1000x8"], 'jaxllm: target "h1000x8": h1000 is no chip known here; did you mean H100?\n'),
        (["--target", "v5p-17920"], "use 525 sequences (--batch 4300800)"),
        (["--target", "h100x8", "--batch", "0"], "no whole number above 0"),
        (["--target", "h100x8", "--price", "-1"], "no price"),
        ([], "--target"),
    ],
)
def test_mistakes_are_one_sentence(capsys, arguments, sentence):
    code, out, err = run(capsys, CONFIG, *arguments)
    assert (code, out) == (2, "")
    assert sentence in err and "Traceback" not in err


def test_no_jax_is_loaded():
    code = (
        "import sys, jaxllm\n"
        f"jaxllm.plan(jaxllm.load_experiment({CONFIG!r}), target='v5p-8', batch=65536)\n"
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
