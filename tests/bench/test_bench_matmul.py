"""The benchmarks of products and blocks: shapes, counts and what is reported; no time is judged."""

import json

import jax
import jax.numpy as jnp
import msgspec
import pytest
import tiny

from jaxllm import cli
from jaxllm.bench import layer, matmul, pieces, roofline_plot
from jaxllm.bench.share import share
from jaxllm.config import MeshConfig
from jaxllm.roofline import ceilings
from jaxllm.roofline.block import Product, parts, seconds
from jaxllm.roofline.hardware import find_chip

EXPERIMENT = tiny.experiment(mesh=MeshConfig(fsdp=4, tensor=2), accumulate=2)

CONFIG = """
model = { d_model = 32, num_layers = 1, vocab_size = 64, attention = { num_heads = 2 }, mlp = { d_ff = 48 } }
data = { phases = [{ sequence_length = 16, batch_size = 2, steps = 1 }] }
mesh = { fsdp = 1 }
train = { precision = { compute = "float32" } }
"""


@pytest.fixture(autouse=True)
def one_round(monkeypatch):
    """Each piece is compiled once, as a loop of one round, and quickly: how fast it runs is not judged here."""
    monkeypatch.setattr(pieces, "LEAST_SECONDS", 0.0)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_a_device_s_share_of_the_mesh():
    part = share(EXPERIMENT)
    (block,) = part.blocks
    assert (part.rows, part.micro_rows, part.length) == (2, 2, 32), "16 rows, 2 micro-batches, 4 devices"
    assert (block.attention.num_heads, block.attention.kv_heads, block.attention.head_dim) == (4, 2, 8)
    assert (block.mlp.d_ff, part.vocab_size) == (48, 64)
    assert part.describe() == "2 x 32 = 64 tokens"


def test_long_batches_are_cut():
    part = share(tiny.experiment(shape=(1024, 32)))
    assert part.describe() == "512 x 32 = 16,384 tokens of a micro-batch of 1024 x 32"
    assert part.head_rows == 1024, "a chunk of the loss"
    assert share(tiny.experiment(shape=(1, 32768))).rows == 1, "never less than a row"


def test_a_free_axis_takes_the_devices_that_are_here():
    assert share(tiny.experiment(mesh=MeshConfig(fsdp=-1, tensor=2))).micro_rows == 16 // 4
    assert share(tiny.experiment(mesh=MeshConfig(fsdp=-1, tensor=4, data=4))).micro_rows == 16 // 4, (
        "more than are here"
    )


def test_equal_shapes_are_measured_once():
    found = matmul.distinct(matmul.products(share(EXPERIMENT)))
    assert [(one.name, one.rows, one.contraction, one.columns) for one in found] == [
        ("query", 64, 64, 32),
        ("key, value", 64, 64, 16),
        ("output", 64, 32, 64),
        ("gate, up", 64, 64, 48),
        ("down", 64, 48, 64),
        ("head", 64, 64, 64),
    ]


def test_rounds_depend_on_each_other(monkeypatch):
    """Every round adds one to what the round before left, so none is left out and none is done once for all."""
    monkeypatch.setattr(pieces, "LEAST_SECONDS", 1e9)
    monkeypatch.setattr(pieces, "_MOST_ROUNDS", 7)
    with matmul.one_device():
        timed = pieces.Timed(pieces.Piece("", lambda x: x + 1, (jnp.zeros(3),)))
        assert timed.rounds == 7
        (spread,) = pieces.take_turns([timed], 4)
        assert timed._carried[0].tolist() == [7 * (1 + 4), 0, 0]
    assert 0 < spread.quartiles[0] <= spread.median <= spread.quartiles[1]


def test_a_product_is_the_model_s_contraction():
    with matmul.one_device():
        timed = matmul.product(Product(name="", rows=4, contraction=8, columns=6), "float32")
        before, w = timed._piece.inputs
        timed._carried = jnp.array(before), timed._carried[1]
        timed.run()
        assert jnp.allclose(timed._carried[1][0], before[0] @ w, atol=1e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The command line, on a tiny config: what it prints, and a file of ceilings."""
    directory = tmp_path_factory.mktemp("ceilings")
    (directory / "tiny.toml").write_text(CONFIG)

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(["bench", *map(str, arguments)])
        return end.value.code

    return call, directory


def test_the_command_writes_ceilings_that_the_next_one_reads(run, capsys, monkeypatch):
    call, directory = run
    monkeypatch.setattr(matmul, "COPY_BYTES", 2**16)
    config, out = directory / "tiny.toml", directory / "ceilings.json"
    assert call("matmul", config, "--squares", 16, "--repeats", 2, "--json", "--out", out) == 0
    result = json.loads(capsys.readouterr().out)
    check_matmul(result)
    assert "the fastest product here, as no datasheet is known" in matmul.text(result)
    found = ceilings.load(out)
    assert msgspec.to_builtins(found, str_keys=True)["flops_per_second"] == result["roof"]["flops_per_second"]
    assert [one.name for one in found.products][-1] == "square"

    assert call("layer", config, "--repeats", 2, "--ceilings", out, "--train.precision.compute", "bfloat16") == 2
    assert '--ceilings: dtype = "float32", and here it is "bfloat16"' in capsys.readouterr().err
    assert call("layer", config, "--repeats", 2, "--json", "--ceilings", out) == 0
    result = json.loads(capsys.readouterr().out)
    check_layer(result, found)
    assert "as measured before" in layer.text(result)


def check_matmul(result):
    rates = [row["flops_per_second"] for row in (*result["products"], *result["squares"])]
    assert result["roof"] == {
        "flops_per_second": max(rates),
        "memory_bytes_per_second": result["copy"]["bytes_per_second"],
        "chip": "",
    }
    assert max(row["share_of_peak"] for row in (*result["products"], *result["squares"])) == 1
    head = result["products"][-1]
    assert (head["name"], head["rows"], head["contraction"], head["columns"]) == ("head", 32, 32, 64)
    flops, size = 2 * 32 * 32 * 64, 4 * (32 * 32 + 32 * 64 + 32 * 64)
    assert head["intensity"] == flops / size
    assert head["flops_per_second"] == pytest.approx(flops / head["seconds"])
    copied = result["copy"]
    assert copied["bytes"] == 2 * 2**16, "read and written"


def check_layer(result, found):
    config = tiny.experiment(
        msgspec.structs.replace(
            tiny.MODEL,
            d_model=32,
            num_layers=1,
            vocab_size=64,
            attention=type(tiny.MODEL.attention)(num_heads=2),
            mlp=type(tiny.MODEL.mlp)(d_ff=48),
        )
    )
    rows = {(row["name"], row["training"]): row for row in result["parts"]}
    assert rows.keys() == {(name, training) for name in layer.PARTS for training in (False, True)}
    for (name, training), row in rows.items():
        wanted = parts(config.model, config.model.default_block, 2, 16, width=4, training=training)[name]
        least = seconds(wanted, peak=found.flops_per_second, bandwidth=found.memory_bytes_per_second)
        assert row["least_seconds"] == pytest.approx(least)
        assert row["share_of_roof"] == pytest.approx(least / row["seconds"])
    assert rows["norm", True]["binds"] == "memory"


def test_a_known_device_is_held_against_its_datasheet():
    class Device:
        device_kind = "NVIDIA H100 80GB HBM3"

    assert matmul.roof_of(Device(), "bfloat16", 1.0, 2.0) == matmul.Roof(989e12, 3350e9, "H100 SXM")
    assert matmul.roof_of(jax.devices()[0], "bfloat16", 1.0, 2.0) == matmul.Roof(1.0, 2.0)
    # XLA multiplies float32 on these tensor cores, so that is the peak, not the vector units'
    chip = find_chip("H100")
    assert chip and matmul.datasheet_peak(chip, "float32") == 494.5e12


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("matmul",), "name either a config or --preset NAME"),
        (("layer", "tiny.toml", "--preset", "llama3-8b"), "name either a config or --preset NAME"),
        (("matmul", "--preset", "lama3-8b"), "llama3-8b"),
        (("matmul", "tiny.toml", "--repeats", "0"), "--repeats 0: time each product at least once"),
        (("matmul", "--preset", "llama3-8b", "--data.phases.0.batch_size", "2", "--repeats", "0"), "--repeats 0: time"),
        (("matmul", "tiny.toml", "--squares", "0"), "--squares 0: use sides of 1 or more"),
        (("matmul", "tiny.toml", "--out", "nowhere/c.json"), "--out nowhere/c.json: no such directory"),
        (("layer", "tiny.toml", "--repeats", "0"), "--repeats 0: time each part"),
        (("layer", "tiny.toml", "--mesh.context", "2"), "add --mesh.context 1"),
        (("layer", "tiny.toml", "--ceilings", "none.json"), "none.json: no such file or directory; write one with"),
    ],
)
def test_mistakes_get_one_sentence(run, capsys, monkeypatch, arguments, sentence):
    call, directory = run
    monkeypatch.chdir(directory)
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_the_plot_has_the_roof_and_its_points():
    points = [
        roofline_plot.Point(intensity=1.0, flops_per_second=1e11, mark="o"),
        roofline_plot.Point(intensity=100.0, flops_per_second=1e12, mark="+"),
    ]
    lines = roofline_plot.plot(points, peak=1e12, bandwidth=1e11).splitlines()
    # both lie on the roof: the first where it rises from the left end, the second on its flat part
    assert lines[1].startswith("       1 |") and lines[1].endswith("+")
    assert lines[14].startswith("     0.1 |o")
    assert lines[1].count("-") > 30 and "/" in lines[7]
