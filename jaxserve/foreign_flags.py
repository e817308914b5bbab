"""SGLang's flags that this server has no use for: which change nothing here, which are refused.

A flag that is missing here is unknown.  ``name=value`` gives the value that asks for nothing, so
that scripts which spell defaults out keep working.
"""

from collections.abc import Iterator, Mapping, Sequence

# Reason -> flags that change neither what is answered nor what is promised.
NO_EFFECT: Mapping[str, tuple[str, ...]] = {
    "no code of a checkpoint is ever run": ("trust-remote-code",),
    "a step is one compiled program, recorded as one CUDA graph": (
        "cuda-graph-config", "cuda-graph-backend-decode", "cuda-graph-backend-prefill",
        "cuda-graph-max-bs", "cuda-graph-max-bs-decode", "cuda-graph-max-bs-prefill",
        "cuda-graph-bs", "cuda-graph-bs-decode", "cuda-graph-bs-prefill",
        "disable-prefill-cuda-graph", "disable-decode-cuda-graph", "disable-cuda-graph",
        "disable-cuda-graph-padding", "enable-cudagraph-gc", "enable-torch-compile",
        "torch-compile-max-bs", "enable-profile-cuda-graph",
    ),
    "sampling is part of the step": ("sampling-backend",),
    "an idle engine sleeps": ("sleep-on-idle",),
    "nothing kills a server that is slow": ("watchdog-timeout", "soft-watchdog-timeout"),
    "--chunked-prefill-size bounds a step": (
        "max-prefill-tokens", "enable-dynamic-chunking", "enable-mixed-chunk",
    ),
    "admission needs no tuning here": (
        "schedule-conservativeness", "num-continuous-decode-steps", "scheduler-recv-interval",
        "prefill-decode-interval", "prefill-decode-interval-min-bs", "min-free-slots-delay",
    ),
    "text is handled in this process": (
        "tokenizer-worker-num", "detokenizer-worker-num", "enable-tokenizer-batch-encode",
        "disable-tokenizer-batch-decode", "enable-dynamic-batch-tokenizer",
        "dynamic-batch-tokenizer-batch-size", "dynamic-batch-tokenizer-batch-timeout",
        "tokenizer-backend", "batch-notify-size",
    ),
    "weights are read as fast as the disk gives them": (
        "weight-loader-disable-mmap", "weight-loader-prefetch-checkpoints",
        "weight-loader-prefetch-num-threads", "weight-loader-drop-cache-after-load",
    ),
    "XLA chooses the kernels": (
        "enable-p2p-check", "disable-custom-all-reduce", "enable-nccl-nvls", "enable-symm-mem",
        "enable-torch-symm-mem", "enable-mscclpp", "pre-warm-nccl", "bf16-gemm-backend",
        "disable-flashinfer-autotune", "triton-attention-reduce-in-fp32",
        "triton-attention-num-kv-splits", "enable-fused-qk-norm-rope", "enable-tf32-matmul",
    ),
    "grammars are not kept on disk": ("disable-outlines-disk-cache",),
    "the metrics have it": (
        "show-time-cost", "gc-warning-threshold-secs", "enable-metrics-for-all-schedulers",
        "enable-mfu-metrics", "load-snapshot-publish-interval",
    ),
    "priorities never interrupt what runs": ("disable-priority-preemption",),
    "weights are loaded once, before anything else": ("startup-weight-load-mode",),
    "the garbage collector rests after the start": ("gc-threshold",),
    "probes are not logged": ("uvicorn-access-log-exclude-prefixes",),
    "there is no such cache to leave out": ("disable-chunked-prefix-cache",),
}  # fmt: skip

# Reason -> flags that ask for what is not built.
REFUSED: Mapping[str, tuple[str, ...]] = {
    "choose the devices with CUDA_VISIBLE_DEVICES and JAX_PLATFORMS": (
        "device=auto", "base-gpu-id=0", "gpu-id-step=1", "numa-node", "use-ray",
    ),
    "one process on one host serves; only --tp-size divides a model": (
        "pp-size=1", "pipeline-parallel-size=1", "dp-size=1", "data-parallel-size=1", "ep-size=1",
        "expert-parallel-size=1", "attn-dp-size=1", "attn-cp-size=1", "dcp-size=1", "nnodes=1",
        "node-rank=0", "dist-init-addr", "nccl-init-addr", "nccl-port", "dist-timeout",
        "load-balance-method=auto", "enable-dp-attention", "enable-dp-lm-head",
        "pp-max-micro-batch-size", "gated-launch-port",
    ),
    "it serves models that generate text": (
        "is-embedding", "prefill-only-disable-kv-cache", "encoder-only", "language-only",
        "enable-multimodal", "limit-mm-data-per-request", "allowed-media-domains",
    ),
    "weights are served as they are stored": (
        "quantization", "quantization-param-path", "modelopt-quant", "quantize-and-serve",
        "model-loader-extra-config={}", "custom-weight-loader",
    ),
    "the KV pool has the dtype of the model": ("kv-cache-dtype=auto",),
    "the model's own code and config are used": (
        "model-impl=auto", "json-model-override-args={}", "model-config-parser=auto",
    ),
    "there is one tokenizer, the fast one": ("tokenizer-mode=auto", "skip-tokenizer-init"),
    "chat templates are files: --chat-template": (
        "hf-chat-template-name", "completion-template", "trust-request-chat-template",
    ),
    "there are no LoRA adapters": (
        "enable-lora", "max-lora-rank", "max-loaded-loras", "max-loras-per-batch=8",
    ),
    "there is no speculative decoding": ("enable-multi-layer-eagle",),
    "the prefix cache is on the device, and the oldest go first": (
        "enable-hierarchical-cache", "enable-hicache", "enable-lmcache", "enable-flexkv",
        "radix-eviction-policy=lru", "radix-cache-backend", "enable-session-radix-cache",
    ),
    "prefill and decode are not disaggregated": (
        "num-reserved-decode-tokens=512", "enable-pdmux", "enable-pd-role-switch",
    ),
    "weights stay on the device": ("cpu-offload-gb=0", "enable-memory-saver"),
    "the answer cannot carry it": (
        "enable-return-routed-experts", "enable-return-indexer-topk",
    ),
    "--enable-return-hidden-states allows all of them": ("return-hidden-states-mode",),
    "a processor is pickled code, and a server must not run what a client sends": (
        "enable-custom-logit-processor",
    ),
    "results depend on nothing but the request up to rounding, which a batch's size changes": (
        "enable-deterministic-inference", "rl-on-policy-target",
    ),
    "there is no tracer; see /metrics, --log-requests and /start_profile": (
        "enable-trace", "trace-modules=request", "otlp-traces-endpoint", "otlp-service-name",
        "export-metrics-to-file", "export-metrics-to-file-dir", "kv-events-config",
        "enable-request-time-stats-logging", "crash-dump-folder", "log-requests-target",
        "enable-forward-pass-metrics", "tokenizer-metrics-allowed-custom-labels",
        "tokenizer-metrics-custom-labels-header", "stat-loggers", "load-publish-endpoint",
    ),
    "the server speaks HTTP/1.1": (
        "enable-http2", "grpc-mode", "enable-http-worker-reuseport", "ssl-ca-certs",
        "enable-ssl-refresh",
    ),
    "the warm-up is one generation": ("warmups",),
    "tools are called by the client": ("tool-server",),
    "there is no place for files": ("file-storage-path",),
    "signals end the server; there is nothing to plug in": ("custom-sigquit-handler",),
    "a priority never interrupts what runs": (
        "priority-scheduling-preemption-threshold", "default-priority-value",
        "abort-on-priority-when-disabled",
    ),
    "the youngest sequence is retracted first": ("retraction-policy=length",),
    "streaming sessions are always served, out of the prefix cache": ("enable-streaming-session",),
    "a request asks for it: return_prompt_token_ids, return_token_ids": (
        "return-input-ids", "return-output-ids",
    ),
    "logits have the dtype that the model computes in": ("enable-fp32-lm-head",),
    "every layer attends to the whole context": ("swa-full-tokens-ratio",),
    "reasoning is kept as the model wrote it": ("strip-thinking-cache",),
    "white space is --constrained-json-whitespace-pattern": (
        "constrained-json-max-whitespace-cnt",
    ),
    "checkpoints are read and left as they are": ("model-checksum", "delete-ckpt-after-loading"),
    "it is of SGLang's own kernels, caches or model families": (
        "boundary-reduction", "c128-page-size", "checkpoint-engine-wait-weights-before-ready",
        "cp-strategy", "cuda-graph-max-seq-len-prefill", "cuda-graph-prefill-max-context",
        "dcp-comm-backend", "dcp-replicate-q-proj", "debug-cuda-graph",
        "decode-attention-backend", "decoupled-spec-bind-endpoint",
        "decoupled-spec-connect-endpoints", "decoupled-spec-rank", "decoupled-spec-role",
        "decrypted-config-file", "decrypted-draft-config-file",
        "disable-aiter-allreduce-fusion-in-decode", "disable-aiter-allreduce-fusion-in-prefill",
        "disable-attn-tp-gather", "disable-fast-image-processor",
        "disable-flashinfer-cutlass-moe-fp4-allgather", "disable-hybrid-swa-memory",
        "disable-shared-experts-fusion", "dsa-decode-backend", "dsa-paged-mqa-logits-backend",
        "dsa-prefill-backend", "dsa-topk-backend", "dsa-triton-union", "dsv4-attn-backend",
        "dsv4-prefill-backend", "dwdp-size", "enable-adaptive-dispatch-to-encoder",
        "enable-aiter-allreduce-fusion", "enable-amd-monokernel",
        "enable-attn-tp-input-scattered", "enable-broadcast-mm-inputs-process",
        "enable-cp-decode-attn-tp", "enable-decoder-swa-bounded-replay",
        "enable-deepseek-v4-fp4-indexer", "enable-dense-mlp-attn-tp",
        "enable-dp-attention-local-control-broadcast", "enable-draft-weights-cpu-backup",
        "enable-dsa-cache-layer-split", "enable-dsa-fused-indexer",
        "enable-elastic-expert-backup", "enable-encoder-swa-bounded-replay",
        "enable-fused-moe-sum-all-reduce", "enable-hisparse", "enable-int8-mamba-checkpoint",
        "enable-kv-cache-sharding", "enable-layernorm-sp", "enable-layerwise-nvtx-marker",
        "enable-lean-attention", "enable-linear-replayssm", "enable-linear-replayssm-spec",
        "enable-linker-mla-dedup", "enable-lora-overlap-loading",
        "enable-mamba-cache-stochastic-rounding", "enable-megamoe-for-layernorm-sp", "enable-mis",
        "enable-mm-global-cache", "enable-nvidia-megakernel", "enable-page-major-kv-layout",
        "enable-paged-experts", "enable-precise-embedding-interpolation", "enable-prefill-cp",
        "enable-prefill-delayer", "enable-prefix-mm-cache", "enable-quant-communications",
        "enable-return-aux-hidden-states", "enable-scattered-sconv",
        "enable-shared-experts-attn-tp", "enable-single-batch-overlap",
        "enable-torch-compile-debug-mode", "enable-tp-lm-head-all-to-all",
        "enable-two-batch-overlap", "enable-unified-cache-external-linker",
        "enable-unified-memory", "enable-w4a4-mxfp4-megamoe", "enable-waterfill",
        "enable-weights-cpu-backup", "enforce-disable-flashinfer-allreduce-fusion",
        "enforce-shared-experts-fusion", "engine-info-bootstrap-port",
        "experts-shared-outer-loras", "flashinfer-a2a-dispatch-type",
        "flashinfer-allreduce-fusion-backend", "flashinfer-autotune-skip-ops",
        "flashinfer-mla-disable-ragged", "flashinfer-mxfp4-moe-precision", "flexkv-config-file",
        "forward-hooks", "forward-pass-metrics-ipc-name", "forward-pass-metrics-worker-id",
        "fp4-gemm-runner-backend", "fp8-gemm-runner-backend", "fuseep-mode", "hisparse-config",
        "image-processor-backend", "init-expert-location", "int8-mamba-ckpt-size", "kv-canary",
        "kv-canary-real-data", "kv-canary-sweep-interval", "language-model-only",
        "linear-replayssm-cache-len", "lmcache-config-file", "max-ep-size", "max-lora-chunk-size",
        "max-mamba-cache-size", "media-url-max-file-size-mb", "mlx-enable-sampling",
        "modelexpress-config", "mooncake-ib-device", "msprobe-dump-config",
        "optimistic-prefill-attempts", "paged-experts-num-resident", "pdmux-config-path",
        "pp-async-batch-depth", "prefill-attention-backend", "prefill-kv-cache-dequant-dtype",
        "qsa-indexer-dtype", "radix-eviction-policy-config", "return-aux-hidden-state-layer-ids",
        "rl-quant-profile", "sampling-mask-max-tokens", "shared-experts-tp-size", "sidecar",
        "sidecar-args", "sm-group-num", "spec-trace-dir", "swa-prefix-tails",
        "tbo-token-distribution-threshold", "triton-attention-split-tile-size",
        "trust-mm-content-hashes", "unified-cache-external-linker-backend",
        "unified-cache-external-linker-config", "uno-lora-path",
    ),
}  # fmt: skip

# Beginning of a name -> reason: families whose members all need the same thing.
FAMILIES: Mapping[str, str] = {
    "speculative-": "there is no speculative decoding",
    "disaggregation-": "prefill and decode are not disaggregated",
    "encoder-": "prefill and decode are not disaggregated",
    "hicache-": "the prefix cache is on the device only",
    "lora-": "there are no LoRA adapters",
    "moe-": "there is no expert parallelism",
    "deepep-": "there is no expert parallelism",
    "ep-": "there is no expert parallelism",
    "eplb-": "there is no expert parallelism",
    "enable-eplb": "there is no expert parallelism",
    "elastic-ep-": "there is no expert parallelism",
    "expert-": "there is no expert parallelism",
    "kt-": "there is no expert parallelism",
    "mamba-": "there are no state-space models",
    "linear-attn-": "there are no state-space models",
    "mm-": "the model takes text only",
    "dllm-": "there are no diffusion models",
    "offload-": "weights stay on the device",
    "ple-": "weights stay on the device",
    "prefill-delayer-": "there is no data parallelism",
    "remote-instance-": "weights are not sent between instances",
    "modelopt-": "weights are served as they are stored",
    "weight-cache-": "weights are read from files",
    "watermark-": "texts are not watermarked",
    "enable-watermark": "texts are not watermarked",
    "debug-tensor-dump-": "tensors are not dumped",
    "http2-": "the server speaks HTTP/1.1",
    "grpc-": "the server speaks HTTP/1.1",
    "smg-": "the server speaks HTTP/1.1",
    "asr-": "the model takes text only",
}
NOTHING = {  # of a family, what asks for nothing
    "disaggregation-mode": "null",
    "moe-a2a-backend": "none",
    "hicache-size": "0",
}


def judge(arguments: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Sort what our own flags left over of a command line.

    Returns:
        Warnings of flags without effect, errors of refused flags, and what nobody knows.
    """
    warnings: list[str] = []
    errors: list[str] = []
    unknown: list[str] = []
    for flag, values in _split(arguments):
        no_effect, refused = _find(flag, NO_EFFECT), _find(flag, REFUSED)
        if no_effect:
            warnings.append(f"--{no_effect[0]} changes nothing here: {no_effect[2]}")
        elif refused:
            name, nothing, reason = refused
            if nothing is None or values != [nothing]:
                errors.append(f"--{name} is not supported: {reason}")
        elif family := next((key for key in FAMILIES if flag.startswith(key)), None):
            if values != [NOTHING.get(flag)]:
                errors.append(f"--{flag} is not supported: {FAMILIES[family]}")
        else:
            unknown += [f"--{flag}" if flag else "", *values]
    return warnings, errors, [item for item in unknown if item]


def _split(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(name, values) of every flag; ("", values) of what comes before the first."""
    flag, values = "", list[str]()
    for argument in arguments:
        if not argument.startswith("--"):
            values.append(argument)
            continue
        yield flag, values
        flag, has_value, value = argument[2:].partition("=")
        values = [value] if has_value else []
    yield flag, values


def _find(flag: str, table: Mapping[str, tuple[str, ...]]) -> tuple[str, str | None, str] | None:
    """(name, value that asks for nothing, reason) of ``flag`` or of what it abbreviates."""
    entries = [
        (name, nothing if has_value else None, reason)
        for reason, names in table.items()
        for name, has_value, nothing in (item.partition("=") for item in names)
    ]
    exact = [entry for entry in entries if entry[0] == flag]
    abbreviated = [entry for entry in entries if flag and entry[0].startswith(flag)]
    return next(iter(exact or abbreviated), None)
