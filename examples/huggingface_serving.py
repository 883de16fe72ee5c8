"""Three requests on one Llama of Hugging Face transformers, batched continuously over pages of 4-bit keys and values.

    python examples/huggingface_serving.py

The model is small and has random weights, so nothing is downloaded. The second request comes later, the third is a fork
of the first: they share pages until one of them writes. Without a GPU kernels run in Triton's interpreter: some seconds.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import attngen
from attngen.runtime.serving import PagedCache, register_paged

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=256, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=2, head_dim=64,
)  # fmt: skip
device = "cuda" if torch.cuda.is_available() else "cpu"
model = LlamaForCausalLM(config).to(device).bfloat16().eval()
register_paged("attngen-paged")
model.set_attn_implementation("attngen-paged")

llama = {**attngen.load_spec("specs/paged_int4.yaml").canonical(), "head_dim": 64}
pages = PagedCache(attngen.build(llama), layers=2, kv_heads=2, num_pages=16, device=device)
first = pages.pool.allocate()
waiting = {
    first: torch.randint(3, 256, (40,)).tolist()
}  # per request the tokens that its pages do not hold yet
written: dict[int, list[int]] = {first: []}

for turn in range(8):
    if turn == 2:
        late = pages.pool.allocate()
        waiting[late], written[late] = torch.randint(3, 256, (17,)).tolist(), []
    if turn == 4:
        fork = pages.pool.fork(first)
        waiting[fork], written[fork] = [7], [*written[first][:-1], 7]  # another token instead of the last one
    step = pages.step(waiting)
    with torch.no_grad():
        best = model(**step.arguments).logits[0, step.last].argmax(-1).tolist()
    for request, token in zip([*waiting], best, strict=True):
        waiting[request] = [token]
        written[request].append(token)

print(f"pages taken: {16 - pages.pool.num_free_pages} of 16, empty slots in them: {pages.pool.waste:.0%}")
for name, request in (("first", first), ("late", late), ("fork", fork)):
    print(f"{name}: {written[request]}")
