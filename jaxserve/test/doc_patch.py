"""The tutorials' import path of ``launch_server_cmd``."""

from jaxserve.utils import launch_server_cmd

__all__ = ["launch_server_cmd"]
