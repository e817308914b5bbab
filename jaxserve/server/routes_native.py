"""The rows of SGLang's native endpoints for inference, text and sessions."""

from jaxserve.native_refusals import REFUSALS, UNSUPPORTED
from jaxserve.server import native, session_endpoints, text_endpoints
from jaxserve.server.http_errors import Dialect
from jaxserve.server.native_types import GenerateAnswer, GenerateBody, VertexBody
from jaxserve.server.route import EVENTS, Auth, Route, Status

GET_POST = ("GET", "POST")

LIVENESS = (
    Route(
        methods=("GET",), path="/health", handler=native.health, auth=Auth.OPEN,
        summary="200 when a request sent now would be answered, else 503.", media_types=(),
        status=Status.DIFFERS,
        why="Answers at once; SGLang's generates a token and takes a second. 503 while loading, "
        "draining, or after the engine has stopped.",
    ),
    Route(
        methods=("GET",), path="/ready", handler=native.health, auth=Auth.OPEN,
        summary="As /health.", media_types=(),
    ),
    Route(
        methods=("GET",), path="/ping", handler=native.health,
        summary="As /health, for SageMaker.", media_types=(),
    ),
    Route(
        methods=("GET",), path="/health_generate", handler=native.health_generate, auth=Auth.OPEN,
        summary="200 once one token has been generated, 503 if it cannot be in "
        "--health-check-timeout-s.",
        media_types=(), status=Status.DIFFERS,
        why="Takes as long as one token does.",
    ),
)  # fmt: skip

GENERATE = (
    Route(
        methods=("POST", "PUT"), path="/generate", handler=native.generate, starts_work=True,
        summary="Generate from text or token ids.",
        body=GenerateBody, refuses={**UNSUPPORTED, **REFUSALS},
        answer=GenerateAnswer | list[GenerateAnswer],
        media_types=("application/json", EVENTS), status=Status.DIFFERS,
        why="Prompt logprobs: only the entry of position 0 is null. A request that was aborted "
        "while it waited has the same meta_info keys as any other.",
    ),
    Route(
        methods=("POST",), path="/vertex_generate", handler=native.vertex_generate,
        starts_work=True,
        summary="/generate in Vertex AI's form: instances in, predictions out.",
        body=VertexBody, answer=dict[str, list[GenerateAnswer]],
        media_types=("application/json", EVENTS), status=Status.DIFFERS,
        why="The path is fixed: set Vertex AI's predict route (AIP_PREDICT_ROUTE) to it.",
    ),
)  # fmt: skip

TEXT = (
    *(
        Route(
            methods=("POST",), path=f"{prefix}/tokenize", handler=text_endpoints.tokenize,
            summary="Token ids of a text, or of a rendered conversation.",
            body=text_endpoints.TokenizeBody, answer=text_endpoints.TokenizeAnswer,
            dialect=Dialect.OPENAI,
        )
        for prefix in ("", "/v1")
    ),
    *(
        Route(
            methods=("POST",), path=f"{prefix}/detokenize", handler=text_endpoints.detokenize,
            summary="The text of token ids.",
            body=text_endpoints.DetokenizeBody, answer=text_endpoints.DetokenizeAnswer,
            dialect=Dialect.OPENAI,
        )
        for prefix in ("", "/v1")
    ),
    Route(
        methods=("POST",), path="/parse_function_call",
        handler=text_endpoints.parse_function_call,
        summary="The tool calls in a text.", body=text_endpoints.FunctionCallBody,
        answer=dict[str, object],
    ),
    Route(
        methods=("POST",), path="/separate_reasoning", handler=text_endpoints.separate_reasoning,
        summary="The reasoning in a text, and the rest.",
        body=text_endpoints.SeparateReasoningBody, answer=dict[str, object],
    ),
)  # fmt: skip

CONTROL = (
    Route(
        methods=GET_POST, path="/open_session", handler=session_endpoints.open_session,
        summary="Open a session; the answer is its id.", body=session_endpoints.OpenSessionBody,
        answer=str, status=Status.DIFFERS,
        why="capacity_of_str_len is enforced, in tokens. `streaming` needs no flag and pins no KV.",
    ),
    Route(
        methods=GET_POST, path="/close_session", handler=session_endpoints.close_session,
        summary="Forget a session; what it runs goes on.",
        body=session_endpoints.CloseSessionBody, media_types=(),
    ),
    Route(
        methods=("POST",), path="/pause_generation", handler=session_endpoints.pause_generation,
        auth=Auth.ADMIN, summary="Plan no more steps; new requests wait.",
        body=session_endpoints.PauseBody, body_is_optional=True, answer=dict[str, str],
    ),
    Route(
        methods=("POST",), path="/continue_generation",
        handler=session_endpoints.continue_generation, auth=Auth.ADMIN,
        summary="Undo /pause_generation.", body_is_optional=True, body=dict[str, object],
        answer=dict[str, str],
    ),
    Route(
        methods=("POST",), path="/concate_and_append_request",
        handler=session_endpoints.concate_and_append_request,
        summary="Nothing: the prefix cache has what a joined fork needs.",
        body=dict[str, object], body_is_optional=True, media_types=(), status=Status.ADDED,
        why="No SGLang server has it, and its frontend posts it.",
    ),
)  # fmt: skip

ROUTES = (*LIVENESS, *GENERATE, *TEXT, *CONTROL)
