"""Mamba-2 of Hugging Face transformers on generated kernels, prefill and decode, next to transformers' own PyTorch path.

    python examples/huggingface_mamba.py

The model is mamba2-130m with fewer layers and a smaller hidden size, and has random weights, so nothing is downloaded.
Without a GPU the kernels run in Triton's interpreter, which takes some seconds.
"""

import torch
from transformers import Mamba2Config, Mamba2ForCausalLM

import attngen
from attngen.runtime.huggingface_mamba import use

mamba = {
    "attngen": 1,
    "name": "mamba2_small",
    "heads": 4,
    "head_dim": 64,
    "dtype": "float32",
    "recurrence": {"kind": "ssd", "state": 128, "groups": 1, "chunk": 64, "dt_softplus": True},
}

torch.manual_seed(0)
config = Mamba2Config(
    vocab_size=256, hidden_size=128, num_heads=4, head_dim=64, state_size=128, n_groups=1, num_hidden_layers=2,
    chunk_size=64,
)  # fmt: skip
device = "cuda" if torch.cuda.is_available() else "cpu"
model = Mamba2ForCausalLM(config).to(device).eval()
tokens = torch.randint(3, config.vocab_size, (1, 96), device=device)
greedy = {"max_new_tokens": 32, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}

with torch.no_grad():
    expected, written = model(tokens).logits, model.generate(tokens, **greedy)
    print("layers on the generated module:", use(model, attngen.build(mamba)))
    logits, found = model(tokens).logits, model.generate(tokens, **greedy)

error = (logits - expected).abs().max() / expected.abs().max()
print(f"largest difference of the logits from PyTorch, relative: {float(error):.1e}")
print("32 greedy tokens are the same:", torch.equal(found, written))
