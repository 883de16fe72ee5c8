"""A Llama of Hugging Face transformers on a generated kernel, next to transformers' own eager attention.

    python examples/huggingface_llama.py

The model is small and has random weights, so nothing is downloaded; its attention is that of Llama 3.
Without a GPU the kernel runs in Triton's interpreter, which takes some seconds.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import attngen
from attngen.runtime.huggingface import register

llama = {**attngen.load_spec("specs/llama3_causal.yaml").canonical(), "head_dim": 64}
register("attngen", attngen.build(llama))

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=256, hidden_size=512, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=2, head_dim=64, attn_implementation="eager",
)  # fmt: skip
device = "cuda" if torch.cuda.is_available() else "cpu"
model = LlamaForCausalLM(config).to(device).eval()
tokens = torch.randint(3, config.vocab_size, (1, 96), device=device)

with torch.no_grad():
    expected = model(tokens).logits
    model.set_attn_implementation("attngen")
    logits = model(tokens).logits
    written = model.generate(tokens, max_new_tokens=4, do_sample=False, pad_token_id=0)

error = (logits - expected).abs().max() / expected.abs().max()
print(f"largest difference of the logits from eager attention, relative: {float(error):.1e}")
print("next tokens:", written[0, tokens.shape[1] :].tolist())
