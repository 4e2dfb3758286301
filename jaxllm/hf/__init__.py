"""Hugging Face's models: read onto any mesh, and written.

safetensors   headers, checked, and views of byte ranges
names         which part of which tensor a piece of a parameter is; the tables are in jaxllm/models
keys, rope, layers, families, config    `config.json` <-> ModelConfig, every key used or refused
load          tensors -> sharded parameters, every device reading only its bytes
save          parameters -> a directory that transformers loads
"""
