"""Two processes of four devices each read their share of a model's files, and no more."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
from load_share import MESH
from parity import on
from safetensors import safe_open
from test_hf_sharded import MODELS, draw

from jaxllm.hf.save import save
from jaxllm.layers.param import leaves
from jaxllm.models.decoder import Decoder, declarations

HERE = pathlib.Path(__file__).parent


def test_each_of_two_processes_reads_the_bytes_of_its_devices(tmp_path):
    config = MODELS["llama"]
    mesh, _ = on()
    with jax.set_mesh(mesh):
        params, tree = draw(config)
        save(tmp_path / "model", config, tree, dtype="float32", length=20)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
        "PYTHONPATH": str(HERE.parents[1]),
    }
    outs = [tmp_path / f"{index}.safetensors" for index in range(2)]
    both = [
        subprocess.Popen(
            [sys.executable, str(HERE / "load_share.py"), str(tmp_path / "model"), str(out)],
            env=together | {"JAX_PROCESS_ID": str(index)},
            text=True,
            stderr=subprocess.PIPE,
        )
        for index, out in enumerate(outs)
    ]
    for process in both:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err

    mesh, recipe = on(MESH, jax.devices())
    everything, wanted = 0, [0, 0]
    for name, declared in leaves(declarations(Decoder(config, recipe))):
        sharding = jax.NamedSharding(mesh, recipe.rules.storage(declared.axes))
        pieces = sharding.devices_indices_map(declared.shape)
        everything += params[name].nbytes
        for index, out in enumerate(outs):
            ours = {device: place for device, place in pieces.items() if device.id // 4 == index}
            wanted[index] += sum(params[name][place].nbytes for place in set(ours.values()))
            with safe_open(out, "np") as found:
                held = [key for key in found.keys() if key.startswith(f"{name}@")]  # noqa: SIM118
                assert len(held) == 4, name
                places = {str(place): params[name][place] for place in ours.values()}
                for shard in map(found.get_tensor, held):
                    assert any(np.array_equal(shard, piece) for piece in places.values()), name
    for out, share in zip(outs, wanted, strict=True):
        with safe_open(out, "np") as found:
            assert found.metadata() == {"bytes_read": str(share), "devices": "4"}
        assert 0.5 * everything <= share < 0.6 * everything
