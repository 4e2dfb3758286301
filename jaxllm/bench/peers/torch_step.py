"""The peer in PyTorch: transformers' Llama with AdamW, stepped on command (see jaxllm/bench/peer.py).

Run by an interpreter that has torch and transformers; it imports nothing of jaxllm. Weights are float32; with compute
in bfloat16 the forward pass runs under `torch.autocast`, PyTorch's way of the same precision. Attention is
transformers' default.
"""

import json
import os
import sys
import time

import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]


def main() -> None:
    """Answer one line with one line until the input ends."""
    # whatever libraries print goes to the errors; the replies have standard output to themselves
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    description = json.loads(sys.stdin.readline())
    step, parameters = build(description)
    name = f"transformers {transformers.__version__}, PyTorch {torch.__version__}, {torch.get_num_threads()} threads"
    replies.write(json.dumps({"name": name, "parameters": parameters}) + "\n")
    for _ in sys.stdin:
        began = time.perf_counter()
        loss = step()
        replies.write(json.dumps({"seconds": time.perf_counter() - began, "loss": loss}) + "\n")


def build(description):
    """The step as a function without arguments that returns the loss, and the number of parameters."""
    torch.manual_seed(description["seed"])
    rope = {"rope_type": "default", "rope_theta": description["rope_theta"]}
    config = transformers.LlamaConfig(**description["model"], rope_parameters=rope, use_cache=False)
    model = transformers.LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=description["learning_rate"],
        betas=tuple(description["betas"]),
        eps=description["epsilon"],
        weight_decay=description["weight_decay"],
    )
    shape = (description["batch_size"], description["sequence_length"] + 1)
    tokens = torch.randint(0, config.vocab_size, shape)
    low = description["compute"] == "bfloat16"

    def step():
        micros = tokens.chunk(description["accumulate"])
        total = 0.0
        for micro in micros:
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                logits = model(input_ids=micro[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), micro[:, 1:].flatten())
            (loss / len(micros)).backward()
            total += loss.item() / len(micros)
        if description["clip_norm"]:
            torch.nn.utils.clip_grad_norm_(model.parameters(), description["clip_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return step, sum(value.numel() for value in model.parameters())


if __name__ == "__main__":
    main()
