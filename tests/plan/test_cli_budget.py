"""`jaxllm budget` and `jaxllm serving`, as typed."""

import json
import subprocess
import sys

import pytest

from jaxllm.cli import main


@pytest.fixture
def jaxllm(capsys):
    """Runs a command: its exit code, what it printed and what it said went wrong."""

    def run(*words):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        said = capsys.readouterr()
        return stopped.value.code, said.out, said.err

    return run


def test_budget_of_cards_and_days(jaxllm):
    code, out, _ = jaxllm("budget", "--cards", "8xh100", "--days", "7", "--served", "1e12", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["flops"] == pytest.approx(8 * 989e12 * 0.4 * 7 * 86_400)
    rule, best, printed, served = found["choices"]
    assert rule["tokens"] == pytest.approx(20 * rule["parameters"])
    assert best["loss"]["besiroglu"] < rule["loss"]["besiroglu"]
    assert printed["loss"]["hoffmann"] < best["loss"]["hoffmann"]
    assert served["loss"]["besiroglu"] == pytest.approx(best["loss"]["besiroglu"])
    assert served["parameters"] < best["parameters"] and served["days"] > best["days"] == pytest.approx(7)
    assert best["recipe"] == "AdamW, float32"
    assert best["dollars"] == pytest.approx(7 * 24 * 8 * found["price"]["dollars_per_chip_hour"])
    assert [size["bytes_per_parameter"] for size in found["sizes"]] == [16, 12, 8, 6, 2]


def test_budget_reads_like_an_answer(jaxllm):
    code, out, _ = jaxllm("budget", "--cards", "8 x H100", "--days", "7", "--served", "1e12")
    assert code == 0
    assert out.startswith("8 chips of H100 SXM for 7 days at 40 % MFU: 1.91e+21 FLOPs")
    assert "20 tokens a parameter" in out and "the smaller model reaches the same loss" in out
    assert "extrapolated" not in out
    assert "3.99 B" in out and "33.4 B" in out
    code, out, _ = jaxllm("budget", "--cards", "8xh100", "--days", "1", "--price", "2")
    assert "$384 at $2 an hour and chip (--price)" in out
    code, out, _ = jaxllm("budget", "--flops", "5.76e23", "--parameters", "7e9")
    assert code == 0 and "69.3 B" in out and "the size asked for" in out and "extrapolated" in out


def test_budget_of_a_loss_is_the_inverse(jaxllm):
    _, out, _ = jaxllm("budget", "--flops", "1e22", "--json")
    best = json.loads(out)["choices"][1]
    _, out, _ = jaxllm("budget", "--loss", str(best["loss"]["besiroglu"]), "--json")
    assert json.loads(out)["flops"] == pytest.approx(1e22)
    assert json.loads(out)["choices"][1]["parameters"] == pytest.approx(best["parameters"])


def test_chips_first_means_chips(jaxllm):
    # v5p names count TensorCores, two a chip
    for cards, num_chips in (("8xv5p", 8), ("v5p-8", 4)):
        _, out, _ = jaxllm("serving", "--preset", "llama3.2-1b", "--target", cards, "--json")
        assert json.loads(out)["num_chips"] == num_chips


def test_serving(jaxllm):
    code, out, _ = jaxllm("serving", "--preset", "deepseek-v3", "--target", "h100x16", "--bits", "8", "--json")
    assert code == 0 and json.loads(out)["chips_for_weights"] == 10
    code, out, _ = jaxllm("serving", "--preset", "Llama-2-13B", "--target", "8xv5e")
    assert code == 0 and out.startswith("llama2-13b on 8 chips of TPU v5e")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("budget",), "give one of --cards CHIPS, --flops C and --loss L"),
        (("budget", "--loss", "1.8"), "loss = 1.8: no model reaches it; give more than 1.8172"),
        (("budget", "--flops", "1e9"), "--flops = 1e+09: too little for one step of 524,288 tokens; give 8.2e+10"),
        (("budget", "--cards", "h100x8", "--days", "1e-10"), "too little for one step"),
        (("budget", "--flops", "1e20", "--parameters", "1e15"), "--parameters = 1e+15: the budget gives it 16,667"),
        (("budget", "--flops", "many"), "'many' is no positive number"),
        (("budget", "--flops", "1e20", "--days", "3"), "--days goes with --cards"),
        (("budget", "--cards", "8xh101", "--days", "3"), "did you mean H100?"),
        (("budget", "--cards", "8xh100", "--data", "3"), "--data = 3: 8 devices do not split"),
        (("budget", "--cards", "8xh100", "--days", "3", "--mfu", "40"), "--mfu = 40: it is a share of the peak"),
        (("budget", "--flops", "1e21", "more"), "'more' is no argument of this command"),
        (("serving", "--target", "h100x8"), "name either a config or --preset NAME"),
        (("serving", "--preset", "llama2-13", "--target", "h100x8"), "the nearest are llama2-13b"),
        (("serving", "--preset", "llama2-13b", "--target", "h100x8", "--bits", "5"), "bits = 5: use one of 16, 8, 4"),
    ],
)
def test_mistakes_are_one_sentence(jaxllm, words, said):
    code, out, err = jaxllm(*words)
    assert code == 2 and out == ""
    assert said in err.splitlines()[-1]


def test_the_answer_needs_no_jax():
    code = """
import sys
from jaxllm.cli import main
try:
    main(["budget", "--flops", "1e21"])
except SystemExit as stopped:
    sys.exit(stopped.code or "jax" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0
