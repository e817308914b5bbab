"""The exception tree.  Every class carries the HTTP status that a server answers with.

    JaxserveError
    ├── InvalidRequestError        400   the request can never succeed as it is written
    │   ├── ContextLengthError     400   prompt (or prompt + max_new_tokens) exceeds the context
    │   └── UnsupportedFeatureError 400  a known field whose value needs something not built
    ├── GrammarError               400   an output cannot be continued as its grammar demands
    ├── ModelNotFoundError         404   no such model path, hub id or served model
    ├── OverloadedError            503   the queue is full; try again later
    ├── KVCacheFullError           503   one sequence alone does not fit in the KV pool
    ├── EngineDeadError            500   the engine stopped; the server is about to exit
    ├── WeightLoadError            500   a checkpoint is broken or does not fit the model
    ├── ConfigError                500   a flag or a model config that cannot be served
    └── DeviceHangError            500   the device does not answer; the process must be ended

Catch ``JaxserveError`` for all of them.  A message says what was given, what is allowed
and what to do about it.
"""


class JaxserveError(Exception):
    """Base of every error raised on purpose by this package."""

    status = 500


class InvalidRequestError(JaxserveError):
    """The request is wrong in itself: a field's type, range or combination."""

    status = 400


class ContextLengthError(InvalidRequestError):
    """The prompt, or the prompt plus the tokens asked for, is longer than the context."""


class UnsupportedFeatureError(InvalidRequestError):
    """A field of the API that is known and not implemented, with a value that needs it."""


class GrammarError(JaxserveError):
    """A grammar that became too complex to follow, or a token that it does not allow."""

    status = 400


class ModelNotFoundError(JaxserveError):
    """The model path, hub id or model name does not exist or cannot be reached."""

    status = 404


class OverloadedError(JaxserveError):
    """The server will not queue another request now."""

    status = 503


class KVCacheFullError(JaxserveError):
    """A single sequence needs more KV pages than the whole pool has."""

    status = 503


class EngineDeadError(JaxserveError):
    """The engine thread has stopped after an error; nothing will be served any more."""


class WeightLoadError(JaxserveError):
    """A checkpoint cannot be read, or its tensors do not match the model."""


class ConfigError(JaxserveError):
    """A command-line flag or a checkpoint's config.json that cannot be served as given."""


class DeviceHangError(JaxserveError):
    """The device does not finish what it was given; only ending the process ends that."""
