"""A Llama of Hugging Face transformers trained on a generated kernel, next to transformers' own eager attention.

    python examples/huggingface_training.py

The model is small and learns the bytes of README.md; its attention is that of Llama 3, forward and backward.
Without a GPU the kernels run in Triton's interpreter, which takes half a minute.
"""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import attngen
from attngen.runtime.huggingface import register

llama = {**attngen.load_spec("specs/llama3_causal.yaml").canonical(), "head_dim": 64, "grad": True}
register("attngen", attngen.build(llama))

device = "cuda" if torch.cuda.is_available() else "cpu"
text = torch.tensor(list(Path("README.md").read_bytes()), device=device)


def train(implementation: str) -> list[float]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, head_dim=64, attn_implementation=implementation,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for tokens in text[: 10 * 2 * 64].view(10, 2, 64):
        loss = model(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


print("step  eager   attngen")
for step, (expected, loss) in enumerate(zip(train("eager"), train("attngen"), strict=True)):
    print(f"{step:4}  {expected:.5f} {loss:.5f}")
