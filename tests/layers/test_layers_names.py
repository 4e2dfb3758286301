"""Layers know axes by logical name: no file of the room names one of the mesh's."""

import ast
from pathlib import Path

import jaxllm.layers
from jaxllm import mesh_sizes
from jaxllm.config import AXES

FILES = sorted(Path(jaxllm.layers.__file__).parent.glob("*.py"))
NAMED_FOR_AXES = {"AXES", "ACROSS_SLICES", "BATCH_AXES"}


def found(source):
    """Mesh axes, and what lists them, in the code of a file; what is said in docstrings and comments is free."""
    nodes = list(ast.walk(ast.parse(source)))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant)}
    names = {name.name for node in nodes if isinstance(node, ast.ImportFrom) for name in node.names}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return texts & set(AXES) | names & NAMED_FOR_AXES


def test_no_layer_names_a_mesh_axis():
    assert len(FILES) > 7
    assert {file.name: names for file in FILES if (names := found(file.read_text()))} == {}


def test_the_search_finds_them():
    assert found('x = psum(y, "tensor")') == {"tensor"}
    assert found("from jaxllm.sharding import BATCH_AXES as b") == {"BATCH_AXES"}
    assert found("z = sharding.AXES") == {"AXES"}
    assert found('"""The tensor axis."""') == set()
    assert all(hasattr(mesh_sizes, name) for name in NAMED_FOR_AXES)
