"""One process of several: loads its share of a model, and writes what it got.

    JAX_... python tests/hf/load_share.py DIRECTORY OUT

OUT is a safetensors file: `LEAF@DEVICE` -> the shard, and its metadata say how many bytes of tensors were read.
"""

import sys

import jax
import numpy as np
from safetensors.numpy import save_file

from jaxllm.config import MeshConfig
from jaxllm.hf.load import load_tensors, read_config
from jaxllm.hf.safetensors import open_tensors
from jaxllm.layers.param import Recipe, leaves
from jaxllm.sharding import make_mesh, make_rules
from jaxllm.train import processes

MESH = MeshConfig(fsdp=2, tensor=4)


def main(directory: str, out: str) -> None:
    processes.join()
    mesh = make_mesh(MESH)
    tensors = open_tensors(directory)
    with jax.set_mesh(mesh):
        tree = load_tensors(tensors, Recipe(make_rules(MESH, dict(mesh.shape))), read_config(directory))
    shards = {
        f"{name}@{shard.device.id}": np.ascontiguousarray(shard.data)
        for name, array in leaves(tree)
        for shard in array.addressable_shards
    }
    save_file(shards, out, {"bytes_read": str(tensors.bytes_read), "devices": str(len(jax.local_devices()))})


if __name__ == "__main__":
    main(*sys.argv[1:])
