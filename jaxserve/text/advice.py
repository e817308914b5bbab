"""Imported before transformers, which says on import that PyTorch is missing: nobody needs it."""

import logging


def _is_wanted(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("PyTorch was not found")


logging.getLogger("transformers").addFilter(_is_wanted)
