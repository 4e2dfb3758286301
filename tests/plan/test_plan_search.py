"""The search: every legal mesh, what fits, what is fastest; and step times by hand."""

import itertools
import math

import msgspec
import pytest
from planned import EXPERTS, TREE, experiment

import jaxllm
from jaxllm import mesh_sizes
from jaxllm.config import AXES, MeshConfig, resolved
from jaxllm.plan import answer, candidates, efficiency, search
from jaxllm.plan.target import parse
from jaxllm.roofline.collectives import all_to_all_seconds
from jaxllm.roofline.topology import TorusAxis


def brute_force(given, num_devices, slices):
    """All sizes of all axes, as the checks of a run let them pass."""
    phase, found = given.data.phases[0], set()
    options = [size for size in range(1, num_devices + 1) if num_devices % size == 0]
    mixture = given.model.mlp.experts is not None
    for sizes in itertools.product(options, repeat=len(AXES)):
        if math.prod(sizes) != num_devices:
            continue
        sizes = dict(zip(AXES, sizes, strict=True))
        if sizes["expert"] > 1 and not mixture:  # that is only another name of fsdp
            continue
        for parallel in (False, True)[: 1 + (sizes["tensor"] > 1)]:
            try:
                mesh_sizes.check_model(given.model, sizes)
                mesh_sizes.check_batch(phase.batch_size, 1, 1024, sizes, parallel)
                mesh_sizes.slice_sizes(MeshConfig(slices=slices), sizes)
            except ValueError:
                continue
            found.add((*sizes.values(), parallel))
    return found


@pytest.mark.parametrize(
    "target, slices, overrides", [("h100x24", 1, {}), ("v6e-8 x 2", 2, {}), ("v6e-8 x 2", 2, EXPERTS)]
)
def test_every_legal_mesh_is_tried(target, slices, overrides):
    given = experiment(**overrides)
    chips = parse(target)
    found = candidates.meshes(given, given.data.phases[0], chips)
    expected = brute_force(given, chips.num_devices, slices)
    assert len(expected) > 20
    assert {(*one.sizes.values(), one.sequence_parallel) for one in found} == expected
    assert len(found) == len(expected)


def test_one_device_by_hand():
    """8 x 1024 tokens a micro-batch; each part as the module's docstring says it."""
    found = jaxllm.plan(experiment(data__phases__0__batch_size=8), target="v5e-1")
    option = next(one for one in found.options if one.candidate.remat == "block" and one.candidate.accumulate == 1)
    share, chip, tokens = efficiency.of(found.target.chip), found.target.chip, 8 * 1024
    peak, memory = chip.flops_per_second["bfloat16"], chip.hbm_bytes_per_second
    attention, mlp = 512 * (8 + 2 * 4 + 8) * 64, 3 * 512 * 1536
    products = 6 * 2 * tokens * (4 * (attention + mlp) - 512 * 1536)
    assert option.time.products == pytest.approx(products / peak / share.products)
    # heads of 64 fill half of the matrix unit; forward, again, and splash's seven products backward
    forward = 6 * 2 * 1024 * tokens * 8 * 64
    assert option.time.attention == pytest.approx(2 * forward * (1 + 1 + 3.5) / peak / share.attention)
    between = 10 * 512 + 2 * (8 + 4) * 64 + 3 * 1536
    assert option.time.traffic == pytest.approx(6 * 2 * tokens * between * 4 / memory / share.memory)
    head = 6 * tokens * 512 * 4096 / peak / share.products + tokens * 4096 * 18 / memory / share.memory
    assert option.time.head == pytest.approx(head)
    num_parameters = 6 * (attention + mlp + 2 * 512) + 2 * 4096 * 512 + 512
    assert option.time.update == pytest.approx(num_parameters * (2 * 12 + 4 * 4) / memory / share.memory, rel=1e-3)
    assert not option.time.moved and not option.time.waited
    parts = (option.time.products, option.time.attention, option.time.traffic, option.time.head, option.time.update)
    assert option.time.total == pytest.approx(sum(parts))
    assert option.time.binds == "compute"


def test_experts_by_hand():
    """12 experts, 3 of them for each of 8 x 1024 tokens, on one device: as the computing room's docstring says it."""
    found = jaxllm.plan(experiment(**EXPERTS, data__phases__0__batch_size=8), target="v5e-1")
    option = next(one for one in found.options if one.candidate.remat == "block" and one.candidate.accumulate == 1)
    share, chip, tokens = efficiency.of(found.target.chip), found.target.chip, 8 * 1024
    peak, memory = chip.flops_per_second["bfloat16"], chip.hbm_bytes_per_second
    attention, mlp, router = 512 * (8 + 2 * 4 + 8) * 64, 3 * 512 * 1536, 512 * 12
    active = attention + 3 * mlp + router
    products = 6 * 2 * tokens * (4 * active - 3 * 512 * 1536)
    assert option.time.products == pytest.approx(products / peak / share.products)
    between = 10 * 512 + 2 * (8 + 4) * 64 + 3 * 3 * 1536 + 3 * 3 * 512
    traffic = 6 * 2 * 4 * (tokens * between + 12 * mlp)
    assert option.time.traffic == pytest.approx(traffic / memory / share.memory)
    held = 6 * (attention + 12 * mlp + router + 2 * 512) + 2 * 4096 * 512 + 512
    assert option.time.update == pytest.approx(held * (2 * 12 + 4 * 4) / memory / share.memory, rel=1e-3)
    # 6 FLOPs a token for what it meets
    met = held - 6 * 9 * mlp
    flops = tokens * (6 * met + 6 * 12 * 1024 * 8 * 64)
    assert found.mfu(option) == pytest.approx(flops / option.time.total / peak)


def test_tokens_wait_for_their_experts_on_other_devices():
    """The experts of two by two chips: five exchanges a layer, of a quarter more rows than tokens have choices."""
    found = jaxllm.plan(experiment(**EXPERTS), target="v5p:2x2x4")
    option = next(one for one in found.options if one.candidate.mesh.describe() == "fsdp 4, expert 4")
    assert option.placement.describe("expert") == "x (line) x y (line)"
    rows = 3 * option.work.num_tokens
    assert 1.25 * rows <= 4 * mesh_sizes.round_rows(rows, 4) <= 1.3 * rows
    held = 4 * (4 * mesh_sizes.round_rows(rows, 4) * 512 * 2)  # by all four
    once = all_to_all_seconds(held, 2 * [TorusAxis(size=2, wraps=False)], link=90e9)
    share = efficiency.of(found.target.chip).links
    assert option.time.waited["expert"] == pytest.approx(6 * 5 * option.work.num_micro * once / share)


def test_ranked_and_within_memory():
    found = jaxllm.plan(experiment(), target="h100x16")
    times = [option.time.total for option in found.options]
    assert times == sorted(times) and len(times) > 50
    for option in found.options:
        assert option.total_memory <= found.memory_limit
        assert option.time.bound < option.time.total
        assert found.mfu(option) < 1
    assert isinstance(found.configured, answer.Option)
    assert found.configured.time.total >= times[0]
    keys = {(str(option.candidate.mesh), option.candidate.remat) for option in found.options}
    assert len(keys) == len(found.options)


def test_a_pipelines_bubble():
    """With two stages one tick more than micro-batches."""
    found = jaxllm.plan(experiment(data__phases__0__batch_size=24), target="h100x2")
    staged = [one for one in found.options if one.candidate.mesh.sizes["pipe"] == 2]
    assert staged
    for one in staged:
        busy = one.time.products + one.time.attention
        assert one.time.idle == pytest.approx(busy / (one.candidate.accumulate + 1))


def test_what_does_not_fit_says_what_would():
    """The change that is named is one of those that fit."""
    given = experiment(data__phases__0__sequence_length=32768, model__num_layers=24, model__d_model=1024)
    found = jaxllm.plan(given, target="rtx4090x1")
    (misfit,) = found.misfits
    was = misfit.option.candidate
    assert misfit.option.total_memory > found.memory_limit and misfit.change
    fixed = {}
    for part in misfit.change.split(" and "):
        name, value = part.split(" = ")
        fixed[name.removeprefix("train.")] = value.strip('"')
    now = (fixed.get("remat", was.remat), int(fixed.get("accumulate", was.accumulate)))
    assert now in {(one.candidate.remat, one.candidate.accumulate) for one in found.options}


def test_logits_that_do_not_fit_are_cut():
    """In pieces of the loss, which cost no time, before anything is computed twice."""
    given = experiment(model__vocab_size=262144, data__phases__0__batch_size=96, train__loss__chunk=0)
    (misfit,) = jaxllm.plan(given, target="rtx4090x4").misfits
    assert misfit.change == f"train.loss.chunk = {search.CHUNK}"
    fixed = jaxllm.load_experiment(
        msgspec.to_builtins(resolved(given)),
        {**misfit.option.candidate.overrides(), "train.loss.chunk": search.CHUNK},
    )
    again = jaxllm.plan(fixed, target="rtx4090x4")
    assert misfit.option.total_memory > again.memory_limit >= again.configured.total_memory


def test_nothing_fits():
    given = experiment(model__num_layers=48, model__d_model=8192, model__mlp__d_ff=32768)
    found = jaxllm.plan(given, target="rtx4090x2")
    assert found.options == () and found.least is not None
    assert found.least.total_memory > found.memory_limit
    assert found.least.total_memory <= min(one.option.total_memory for one in found.misfits)


def test_days_dollars_and_overrides():
    given = experiment()
    found = jaxllm.plan(given, target="h100x8", tokens=10**12, price=2.0)
    best = found.options[0]
    seconds = 10**12 / (48 * 1024) * best.time.total
    assert found.days(best) == pytest.approx(seconds / 86400)
    assert found.dollars(best) == pytest.approx(seconds / 3600 * 8 * 2.0)
    assert jaxllm.plan(given, target="rtx4090x1").price is None
    asked = jaxllm.load_experiment(TREE, best.candidate.overrides())
    again = jaxllm.plan(asked, target="h100x8")
    assert isinstance(again.configured, answer.Option)
    assert again.configured.candidate == best.candidate
    assert again.configured.time.total == best.time.total


def test_below_the_critical_batch_transfers_bind():
    given = experiment(data__phases__0__batch_size=16, data__phases__0__sequence_length=512)
    found = jaxllm.plan(given, target="h100x16")
    option = next(
        one for one in found.options if one.candidate.mesh.sizes["fsdp"] == 16 and one.candidate.remat == "none"
    )
    moved, blocks = option.time.moved["fsdp"], option.time.blocks
    assert moved > blocks
    assert found.critical_batch(option) == pytest.approx(16 * 512 * moved / blocks)
    assert option.time.binds == "fsdp"
    assert option.time.unhidden >= moved - blocks


@pytest.mark.parametrize(
    "target, overrides, arguments, sentence",
    [
        ("h100x14", {}, {}, r"no mesh splits 48 sequences of 1,024 tokens over 14 devices; use 49 sequences"),
        ("h100x8", {}, {"batch": 1000}, r"--batch 1000: a step is whole sequences of 1,024 tokens; use 1,024"),
        ("h100x8", {}, {"batch": 2000}, r"use 1,024 or 2,048"),
        ("h100x8", {}, {"tokens": 1000}, r"--tokens 1000: that is less than one step of 49,152 tokens"),
        ("h100x8", {"model__vocab_size": 0}, {}, r"model.vocab_size = 0"),
        ("v5e-8", {"train__precision__compute": "float16"}, {}, r"no matrix units for it; use one of bfloat16"),
        ("v100x8", {}, {}, r"V100 SXM 32GB has no matrix units for it; use one of float16"),
    ],
)
def test_one_sentence_for_what_cannot_be(target, overrides, arguments, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        jaxllm.plan(experiment(**overrides), target=target, **arguments)
    assert "\n" not in str(error.value)


def test_a_batch_that_is_refused_names_one_that_is_not():
    with pytest.raises(ValueError, match=r"--batch \d+") as error:
        jaxllm.plan(experiment(), target="h100x14")
    batch = int(str(error.value).split("--batch ")[1].split(")")[0])
    best = jaxllm.plan(experiment(), target="h100x14", batch=batch).options[0]
    assert math.prod(best.candidate.mesh.sizes.values()) == 14


def test_the_best_number_of_micro_batches_is_found():
    """Against all of them, with a pipeline and without, where memory is short."""
    given = experiment(data__phases__0__sequence_length=16384, model__num_layers=12, data__phases__0__batch_size=96)
    chips = parse("rtx4090x4")
    one = search._Search(given, given.data.phases[0], chips, chips.chip)
    options, _ = one.run()
    best = {(str(option.candidate.mesh), option.candidate.remat): option.time.total for option in options}
    for mesh in one.meshes:
        for remat in candidates.REMATS:
            counts = candidates.micro_batches(mesh, given.data.phases[0])
            tried = [candidates.Candidate(mesh=mesh, remat=remat, accumulate=count) for count in counts]
            fits = [option for option in map(one.option, tried) if option.total_memory <= one.limit]
            expected = min((option.time.total for option in fits), default=None)
            # equal ones may differ in their last bit
            assert best.get((str(mesh), remat)) == (expected and pytest.approx(expected, rel=1e-12))
    assert any(option.candidate.accumulate > 1 for option in options)
    assert any(option.candidate.mesh.sizes["pipe"] > 1 for option in options)
