"""Qwen2 and Qwen2.5 (https://arxiv.org/abs/2407.10671, https://arxiv.org/abs/2412.15115).

Llama with biases on queries, keys and values and none on the output, which is what
``ModelConfig.qkv_bias`` and ``out_bias`` say of it: there is no other difference.
"""

from jaxserve.models.llama import Llama

Qwen2 = Llama
