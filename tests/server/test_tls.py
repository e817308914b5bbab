"""HTTPS with a certificate made for these tests, which is worth nothing elsewhere."""

import ssl
from pathlib import Path

import pytest
from aiohttp import ClientSession, web
from server.fake_llm import FakeLLM

from jaxserve.config import ServerConfig
from jaxserve.errors import ConfigError
from jaxserve.server.app import make_app
from jaxserve.server.tls import make_tls_context

FOLDER = Path(__file__).parent / "tls"
CERTIFICATE, KEY, LOCKED = (
    str(FOLDER / name) for name in ("cert.pem", "key.pem", "locked_key.pem")
)


@pytest.mark.parametrize(("key", "password"), [(KEY, None), (LOCKED, "word")])
async def test_a_server_speaks_https(key: str, password: str | None) -> None:
    config = ServerConfig(ssl_certfile=CERTIFICATE, ssl_keyfile=key, ssl_keyfile_password=password)
    runner = web.AppRunner(make_app(FakeLLM(), config))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=make_tls_context(config)).start()
        trusted = ssl.create_default_context(cafile=CERTIFICATE)
        url = f"https://127.0.0.1:{runner.addresses[0][1]}/model_info"
        async with ClientSession() as session, session.get(url, ssl=trusted) as response:
            assert (await response.json())["model_path"] == "fake/model"
    finally:
        await runner.cleanup()


def test_without_files_there_is_no_tls() -> None:
    assert make_tls_context(ServerConfig()) is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"ssl_keyfile": KEY}, "--ssl-keyfile and --ssl-certfile go together"),
        ({"ssl_certfile": CERTIFICATE}, "--ssl-keyfile and --ssl-certfile go together"),
        ({"ssl_certfile": CERTIFICATE, "ssl_keyfile": "/no/such"}, "cannot be used: No such file"),
        ({"ssl_certfile": KEY, "ssl_keyfile": CERTIFICATE}, "cannot be used: "),
        ({"ssl_certfile": CERTIFICATE, "ssl_keyfile": LOCKED}, "cannot be used: "),
    ],
)
def test_files_that_cannot_be_used(files: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_tls_context(ServerConfig(**files))
