"""The names of SGLang 0.5's metrics that its dashboards, tests and documents name, and a reader."""

GAUGES = """
    num_running_reqs num_queue_reqs num_grammar_queue_reqs num_paused_reqs num_retracted_reqs
    num_used_tokens token_usage full_token_usage swa_token_usage kv_available_tokens
    kv_evictable_tokens kv_used_tokens gen_throughput cache_hit_rate decode_sum_seq_lens
    utilization new_token_ratio max_total_num_tokens page_size num_pages context_len
    weight_memory_usage_gb kv_cache_memory_usage_gb graph_memory_usage_gb startup_time_seconds
    weight_load_duration_seconds is_cuda_graph spec_accept_length spec_accept_rate
    lora_pool_slots_used lora_pool_slots_total lora_pool_utilization hicache_host_used_tokens
    hicache_host_total_tokens num_streaming_sessions streaming_session_held_tokens
    startup_available_gpu_memory_gb startup_cuda_graph_time_seconds prefill_queue_depth
    decode_queue_depth num_prefill_inflight_reqs routing_keys_active
    num_unique_running_routing_keys routing_key_running_req_count routing_key_all_req_count
    http_requests_active
"""
COUNTERS = """
    prompt_tokens_total generation_tokens_total cached_tokens_total num_requests_total
    num_so_requests_total num_aborted_requests_total spec_verify_calls_total
    num_retracted_requests_total num_retracted_input_tokens_total
    num_retracted_output_tokens_total realtime_tokens_total evicted_tokens_total
    load_back_tokens_total hicache_backup_tokens_total cuda_graph_passes_total num_grammar_total
    num_grammar_cache_hit_total num_grammar_aborted_total num_grammar_timeout_total
    scheduler_idle_seconds_total forward_execution_seconds_total prefetched_tokens_total
    backuped_tokens_total scheduler_process_cpu_seconds_total scheduler_stage_seconds_total
    http_requests_total http_responses_total process_cpu_seconds_total
"""
HISTOGRAMS = """
    time_to_first_token_seconds inter_token_latency_seconds e2e_request_latency_seconds
    request_time_per_output_token_seconds queue_time_seconds per_stage_req_latency_seconds
    grammar_compilation_time_seconds prompt_tokens_histogram generation_tokens_histogram
    uncached_prompt_tokens_histogram eviction_duration_seconds func_latency_seconds
    kv_transfer_speed_gb_s kv_transfer_latency_ms kv_transfer_bootstrap_ms kv_transfer_alloc_ms
    kv_transfer_total_mb
"""
KINDS = {
    "gauge": GAUGES.split(),
    "counter": COUNTERS.split(),
    "histogram": HISTOGRAMS.split(),
}


def emitted(text: str) -> dict[str, set[str]]:
    """Names with SGLang's prefix that have a sample in Prometheus ``text``, without it, by kind."""
    found: dict[str, set[str]] = {kind: set() for kind in KINDS}
    samples = {line.partition("{")[0] for line in text.splitlines() if not line.startswith("#")}
    for line in text.splitlines():
        if line.startswith("# TYPE sglang:"):
            name, kind = line.split()[2:]
            is_time = name.endswith("_created")  # of each counter; prometheus-client's addition
            if not is_time and (name in samples or f"{name}_count" in samples):
                found[kind].add(name.removeprefix("sglang:"))
    return found
