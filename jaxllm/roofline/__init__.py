"""Numbers without jax: what chips offer, what a decoder costs, and what training and serving it take, in closed form.

    hardware         the table of chips            topology         slices of TPUs, trees of GPUs
    intensity        rooflines of one chip         collectives      how long they take
    matmul_sharding  products of sharded arrays    parallelism      when each way to train is bound by what
    counts           parts of a transformer        attention        and its attention, from plain numbers
    transformer      parameters of a decoder       conventions      its FLOPs, by every convention of the field
    memory           its bytes, from the config    summary          all of it for one model
    training         time and size of a run        inference        prefill and decode
    gpu_targets      GPUs for XLA's compiler

The notation is that of "How to Scale Your Model" (Austin et al. 2025), "the book" below, and F1 to F67 are its formulas
as jaxllm numbers them. Chapters are those of its present edition, counted from 1 (rooflines) to 8 (applied inference).
"""
