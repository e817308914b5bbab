"""``EngineStats``: what the engine tells of itself, frozen, after every step."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot of the engine after one step.  ``*_total`` count since start-up."""

    # sequences
    num_running: int = 0
    num_waiting: int = 0
    num_prefilling: int = 0  # running ones whose prompt is not computed to its end
    num_retracted: int = 0  # waiting ones that have run before
    num_paused: int = 0  # running and waiting ones while the engine is paused
    is_paused: bool = False
    max_running: int = 0  # slots
    # tokens
    num_used_tokens: int = 0  # KV held by running sequences
    num_evictable_tokens: int = 0  # KV held only by the prefix cache
    max_total_num_tokens: int = 0  # KV pool size
    page_size: int = 1
    num_waiting_tokens: int = 0  # prompts of the waiting sequences, cached or not
    sum_seq_lens: int = 0  # prompts and outputs of the running sequences
    # rates
    gen_throughput: float = 0.0  # output tokens per second over the last log interval
    cache_hit_rate: float = 0.0  # cached prompt tokens / prompt tokens, since start-up
    # since start-up
    num_retractions: int = 0
    num_retracted_input_tokens_total: int = 0
    num_retracted_output_tokens_total: int = 0
    num_evicted_tokens_total: int = 0
    num_steps_total: int = 0
    num_extend_steps_total: int = 0
    num_prefill_tokens_total: int = 0  # prompt tokens computed
    num_cached_tokens_total: int = 0  # prompt tokens found in the prefix cache
    num_decode_tokens_total: int = 0
    num_extend_slots_total: int = 0  # tokens that the EXTEND buckets had room for
    num_decode_slots_total: int = 0  # rows that the DECODE buckets had room for
    num_decode_rows_total: int = 0  # rows of them that were used
    num_recompiles_total: int = 0  # programs compiled after warm-up: each is a defect
    # seconds since start-up, of the engine thread
    extend_s_total: float = 0.0  # from launch, or the end of the step before, to its tokens
    decode_s_total: float = 0.0
    idle_s_total: float = 0.0
    schedule_s_total: float = 0.0  # planning
    process_s_total: float = 0.0  # applying results and handing them on
    cpu_s_total: float = 0.0  # CPU time of the thread
    # memory, in bytes on one device
    weight_bytes: int = 0
    kv_cache_bytes: int = 0
    free_bytes_at_start: int = 0
    device_name: str = ""  # as it calls itself
    num_streaming_sessions: int = 0  # that are open
    # grammars
    num_grammar_queue: int = 0  # requests whose grammar is being compiled
    num_grammars_total: int = 0
    num_grammar_cache_hits_total: int = 0
    num_grammar_aborts_total: int = 0
    num_grammar_timeouts_total: int = 0
    grammar_s_total: float = 0.0  # spent compiling

    @property
    def num_available_tokens(self) -> int:
        """KV tokens that nobody holds."""
        return self.max_total_num_tokens - self.num_used_tokens - self.num_evictable_tokens

    @property
    def token_usage(self) -> float:
        """Share of the KV pool held by running sequences, 0 to 1."""
        return self.num_used_tokens / max(1, self.max_total_num_tokens)

    @property
    def utilization(self) -> float:
        """The scarcer of slots and KV pool: the larger share of either in use, 0 to 1."""
        return max(self.token_usage, self.num_running / max(1, self.max_running))
