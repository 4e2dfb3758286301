"""The report's heat maps of experts: which cell has which colour, what the note says, and how large the file gets."""

import math
import re

from jaxllm.train.lines import JsonLines
from jaxllm.train.metrics import METRICS
from tests.train.test_report import Page, make_run, report


def make_moe_run(directory, looks):
    """A run of 10 steps without experts, and one step more for each of the loads by layer."""
    make_run(directory, 10)
    with JsonLines(directory / METRICS) as lines:
        for step, loads in enumerate(looks, start=11):
            most = [max(load) - 1 for load in loads]
            told = {"expert_load": loads, "max_violation": most, "bias_spread": [0.0] * len(loads)}
            lines.write({"attempt": 0, "step": step, "loss": 3.0, **told})
    return directory


def cells(text):
    """Of each map, its width and height, and the class of each cell by column and row."""
    maps = []
    for width, height, shapes in re.findall(
        r'<svg viewBox="0 0 (\d+) (\d+)"[^>]*>((?:<path class="heat.*?/>)*)</svg>', text
    ):
        found = {}
        for number, path in re.findall(r'class="heat-(\d)" d="([^"]*)"', shapes):
            for x, y, wide, back in re.findall(r"M(\d+) (\d+)h(\d+)v1h-(\d+)z", path):
                assert wide == back
                for column in range(int(x), int(x) + int(wide)):
                    assert (column, int(y)) not in found, "drawn once"
                    found[column, int(y)] = int(number)
        if (int(width), int(height)) != (2000, 1000):
            maps.append((int(width), int(height), found))
    return maps


def test_a_cell_s_colour_is_of_its_load_and_the_note_names_the_fullest_expert(tmp_path):
    first, last = [[0.2, 0.3, 0.79, 2.71], [1.0] * 4], [[0.0, 0.0, 0.0, 4.0], [1.24, 0.81, 1.0, 0.95]]
    text = report(tmp_path, make_moe_run(tmp_path / "run", [first, last]))
    one, other = cells(text)
    assert one == (2, 4, {(0, 0): 0, (0, 1): 1, (0, 2): 2, (0, 3): 5, (1, 0): 0, (1, 1): 0, (1, 2): 0, (1, 3): 6})
    assert other == (2, 4, {(x, y): 3 for x in range(2) for y in range(4)})
    page = Page(text)
    assert "At step 12 expert 3 of layer 0 has most to do, 4.00 times the mean." in page.texts["p"]
    assert "Layer 0 of those with experts: loads from 0 to 4.00" in " ".join(page.attributes("svg", "aria-label"))
    assert {"MaxVio", "Load of the experts"} <= set(re.findall(r"<h2>(.*?)</h2>", text))
    assert "Balancing bias" not in page.texts["h2"], "there is none"


def test_a_column_of_a_long_run_is_the_mean_of_its_steps(tmp_path):
    """240 steps in 120 columns: of two steps that lie apart the mean is even."""
    text = report(tmp_path, make_moe_run(tmp_path / "run", [[[0.1, 1.9]], [[1.9, 0.1]]] * 120))
    assert cells(text) == [(120, 2, {(x, y): 3 for x in range(120) for y in range(2)})]
    assert "A column is the mean of 2.00 logged steps." in Page(text).texts["p"]


def test_of_many_layers_some_are_drawn_and_the_file_stays_small(tmp_path):
    num_layers, num_experts = 13, 200
    loads = [
        [[abs(math.sin(step + 7 * layer + expert)) * 3 for expert in range(num_experts)] for layer in range(num_layers)]
        for step in range(30)
    ]
    text = report(tmp_path, make_moe_run(tmp_path / "run", loads))
    assert len(cells(text)) == 12 and "12 of 13 layers are drawn." in text
    assert {"layer 0", "layer 12"} <= set(re.findall(r"<h3>(layer \d+)<", text))
    assert len(text) < 900_000


def test_runs_without_experts_and_several_runs_have_no_maps(tmp_path):
    run, bare = make_moe_run(tmp_path / "run", [[[1.0, 1.0]]]), make_run(tmp_path / "bare")
    assert "Load of the experts" not in report(tmp_path, bare)
    assert "Load of the experts" not in report(tmp_path, run, bare)
