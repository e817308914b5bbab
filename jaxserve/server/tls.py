"""HTTPS: the certificate and key that the flags name."""

import ssl

from jaxserve.config import ServerConfig
from jaxserve.errors import ConfigError


def make_tls_context(config: ServerConfig) -> ssl.SSLContext | None:
    """How to speak TLS; None for plain HTTP.

    Raises:
        ConfigError: only one of the two files is named, or they cannot be used.
    """
    key, certificate = config.ssl_keyfile, config.ssl_certfile
    if key is None and certificate is None:
        return None
    if key is None or certificate is None:
        raise ConfigError("--ssl-keyfile and --ssl-certfile go together; give both or neither")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # A function, so that a key with a password never asks at the terminal.
        context.load_cert_chain(
            certificate, key, password=lambda: config.ssl_keyfile_password or ""
        )
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(
            f"--ssl-certfile {certificate} with --ssl-keyfile {key} cannot be used: "
            f"{error.strerror or error}"
        ) from None
    return context
