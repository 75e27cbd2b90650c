"""Routes of vLLM's server: `GET /tallstore` says what it serves, `POST /tallstore/switch {"task": "mr"}` exchanges it.

vLLM has a plug-in add routes only where `VLLM_PLUGINS` names it, as whoever may ask the server may then change what it
answers. `tallstore serve` names it; `--no-route` does not.
"""

from __future__ import annotations

from typing import Any

from tallstore.engines.vllm.options import PLUGIN
from tallstore.engines.vllm.switching import switch_async
from tallstore.errors import EngineError, InputError, ModelMismatchError, NoSuchTaskError, TallstoreError

__all__ = ["SwitchRoutes"]

_STATUS = ((NoSuchTaskError, 404), (InputError, 400), (ModelMismatchError, 409), (EngineError, 409))


class SwitchRoutes:
    """vLLM's `EndpointPlugin`."""

    name = PLUGIN
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._engine: Any = None

    def attach_router(self, app: Any) -> None:
        """Add the routes."""
        app.add_api_route("/tallstore", self.serving, methods=["GET"])
        app.add_api_route("/tallstore/switch", self.switch, methods=["POST"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:  # noqa: ARG002 - vLLM's own
        """Keep the engine that the routes are about."""
        self._engine = engine_client

    async def serving(self) -> Any:
        """What is served."""
        answers = await self._engine.collective_rpc("tallstore_serving", args=())
        return _answer({key: value for key, value in answers[0].items() if key != "ok"})

    async def switch(self, asked: dict[str, Any]) -> Any:
        """Exchange the task. The archive is the server's own: whoever asks names no other."""
        task, in_flight = asked.get("task"), asked.get("in_flight", "wait")
        if not isinstance(task, str) or not isinstance(in_flight, str) or set(asked) - {"task", "in_flight"}:
            return _answer({"error": 'expected {"task": "…"}, and "in_flight": "wait" or "abort" if wanted'}, 400)
        try:
            return _answer(await switch_async(self._engine, task, in_flight=in_flight))
        except TallstoreError as error:
            status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
            return _answer({"error": str(error)}, status)


def _answer(content: dict[str, Any], status: int = 200) -> Any:
    from fastapi.responses import JSONResponse

    return JSONResponse(content, status_code=status)
