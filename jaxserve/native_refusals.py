"""Fields of /generate that are known and not built: a value that asks for something is a 400."""

from collections.abc import Mapping

from jaxserve.errors import InvalidRequestError, UnsupportedFeatureError
from jaxserve.native_fields import Fields, asks_for_something

_OUTPUT = "the answer cannot carry it yet"
_MULTIMODAL = "the model takes text only"
_DISAGGREGATION = "prefill and decode run in one server"
# Field → why a value that asks for something is refused.
UNSUPPORTED: Mapping[str, str] = {
    **dict.fromkeys(("image_data", "video_data", "audio_data"), _MULTIMODAL),
    **dict.fromkeys(
        (
            "return_routed_experts",
            "return_indexer_topk",
            "return_entropy",
            "return_bytes",
            "return_sampling_mask",
            "sampling_logprobs_mode",
            "return_flat_raw_top_logprobs",
            "return_flat_raw_output_top_logprobs",
            "return_flat_raw_top_logprobs_b64",
        ),
        _OUTPUT,
    ),
    **dict.fromkeys(
        (
            "bootstrap_host",
            "bootstrap_port",
            "bootstrap_room",
            "bootstrap_pair_key",
            "decode_tp_size",
            "disagg_prefill_dp_rank",
        ),
        _DISAGGREGATION,
    ),
    **dict.fromkeys(("data_parallel_rank", "routed_dp_rank"), "there is one replica, of rank 0"),
    **dict.fromkeys(("lora_path", "lora_id"), "there are no LoRA adapters"),
    "positional_embed_overrides": "input_embeds replace the embeddings of a whole prompt only",
    "watermark": "texts are not watermarked",
}
# Field → the whole message, for those whose first sentence clients know.
REFUSALS: Mapping[str, str] = {
    "custom_logit_processor": (
        "The server is not configured to enable custom logit processor. They are pickled Python "
        "code, which this server never executes; use logit_bias or a grammar."
    ),
}


def check_supported(body: Fields) -> None:
    """Refuse known fields whose value asks for something that is not built.

    Raises:
        UnsupportedFeatureError: names the field.
    """
    for name in (UNSUPPORTED.keys() | REFUSALS.keys()) & body.keys():
        if asks_for_something(body[name]):
            raise UnsupportedFeatureError(
                REFUSALS.get(name)
                or f"`{name}` is not supported: {UNSUPPORTED[name]}. Leave it away or send null."
            )
    if body.get("session_id") is not None and body.get("session_params") is not None:
        raise InvalidRequestError("session_id and session_params cannot both be set.")
