"""`voicechat tools`: an MCP server whose tools a spoken conversation can call."""

from typing import Annotated

import typer

from voicechat_ui.commands.output import console

HOST = "127.0.0.1"
"""Its tools need no key: only this machine may call them."""


def tools(port: Annotated[int, typer.Option(min=1, max=65535, help="the port to listen on")] = 8765) -> None:
    """Serve example tools for conversations: time, timers, arithmetic, and what a sweep has found. Ctrl-C stops it.

    Example: voicechat tools --port 8765
    """
    from voicechat_serve.operations.ports import require_free

    require_free(port, HOST)
    with console.status("loading"):
        from voicechat_ui.example_tools import build_server

        server = build_server()
    console.print(f"tools at http://{HOST}:{port}/mcp; put this into the `args` of `api` in an application file:")
    print(f'tools:\n  - {{label: desk, url: "http://{HOST}:{port}/mcp", allow: "*"}}', flush=True)
    server.run("streamable-http", host=HOST, port=port, json_response=True, stateless_http=True)
