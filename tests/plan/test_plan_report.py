"""What `jaxllm plan` prints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from planned import experiment

import jaxllm
from jaxllm import cli
from jaxllm.plan import page, report
from jaxllm.plan.computed import operations

CONFIG = str(Path(__file__).parents[2] / "configs" / "llama3_8b.toml")


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
    assert f"{100 * found.mfu(best):.1f} % (palm: 6 x active parameters + full-square attention)" in text
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


def test_the_command(capsys, tmp_path):
    code, out, err = run(capsys, CONFIG, "--target", "h100x8", "--top", "2", "--tokens", "15e12", "--batch", "524288")
    assert (code, err) == (0, "")
    assert "8 chips of H100 SXM" in out and "15 trillion tokens" in out
    html = tmp_path / "plan.html"
    code, out, _ = run(capsys, CONFIG, "--target", "h100x8", "--json", "--batch", "524288", "--html", str(html))
    assert html.read_text().startswith("<!doctype html>")
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


def test_the_page_stands_alone(tmp_path):
    found = jaxllm.plan(experiment(run__name="<b>bold"), target="h100x8")
    page.write(found, str(tmp_path / "plan.html"))
    text = (tmp_path / "plan.html").read_text()
    assert "<script" not in text and "http://" not in text and "https://" not in text
    assert "&lt;b&gt;bold" in text and "<b>bold" not in text
    for title in ("Roofline", "Step time", "Memory of a device", "Communication"):
        assert f"<h2>{title}</h2>" in text
    assert text.count('class="bar"') == 3 * 12
    assert text.count("<circle") == len(operations(found.options[0].work))


def test_a_roofline_of_one_product():
    """[8192, 512] x [512, 1536]: 2 x 8192 x 512 x 1536 FLOPs on 2 bytes of each value."""
    found = jaxllm.plan(experiment(data__phases__0__batch_size=8), target="v5e-1")
    option = next(one for one in found.options if one.candidate.accumulate == 1)
    down = next(one for one in operations(option.work) if one.name == "down")
    values = 8192 * 512 + 512 * 1536 + 8192 * 1536
    assert down.intensity == pytest.approx(2 * 8192 * 512 * 1536 / (2 * values))


def test_nothing_to_draw(tmp_path):
    given = experiment(model__num_layers=48, model__d_model=8192, model__mlp__d_ff=32768)
    with pytest.raises(ValueError, match="nothing of the plan fits on rtx4090x1"):
        page.write(jaxllm.plan(given, target="rtx4090x1"), str(tmp_path / "plan.html"))
