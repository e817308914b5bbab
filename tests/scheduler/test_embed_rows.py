"""Where the embeddings of prompts stand in a step, however the prompts are cut."""

import numpy as np
import pytest

from jaxserve.batch import EMBED_TOKEN
from jaxserve.request import Request, SamplingParams
from jaxserve.scheduler.embed_rows import place_embeds
from jaxserve.scheduler.sequence import Sequence, make_sequence


def make_seq(num_prompt: int, *, has_embeds: bool) -> Sequence:
    """Row p of its embeddings is [p, p]."""
    rows = np.repeat(np.arange(num_prompt, dtype=np.float32)[:, None], 2, axis=1)
    request = Request(
        rid="r", prompt_ids=(5,) * num_prompt, sampling=SamplingParams(seed=0), arrival_s=0.0,
        embeds=rows if has_embeds else None,
    )  # fmt: skip
    return make_sequence(request, 0, ())


@pytest.mark.parametrize("cuts", [(10,), (4, 6), (1, 1, 8), (9, 1)])
def test_every_row_once_at_its_token(cuts: tuple[int, ...]) -> None:
    plain, seq = make_seq(10, has_embeds=False), make_seq(10, has_embeds=True)
    found: list[float] = []
    for size in cuts:
        token_ids = np.full(64, 5, np.int32)
        starts = np.array([0, 3, 3 + size], np.int32)
        (rows,) = place_embeds([plain, seq], starts, token_ids)
        assert rows.start == 3
        assert np.flatnonzero(token_ids == EMBED_TOKEN).tolist() == list(range(3, 3 + size))
        found += rows.rows[:, 0].tolist()
        seq.num_computed += size
    assert found == list(range(10))


def test_output_tokens_have_none() -> None:
    """After a retraction the output is computed together with the prompt."""
    seq = make_seq(4, has_embeds=True)
    seq.tokens.extend([8, 9])
    token_ids = np.full(8, 5, np.int32)
    (rows,) = place_embeds([seq], np.array([0, 6]), token_ids)
    assert (len(rows.rows), token_ids[:6].tolist()) == (4, [EMBED_TOKEN] * 4 + [5, 5])
    seq.num_computed = 5
    assert place_embeds([seq], np.array([0, 1]), token_ids) == ()
