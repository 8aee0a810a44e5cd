"""The WebSocket /ws/models/{id}/. It sends the state of a training at once, and every change after that."""

from __future__ import annotations

from typing import Any

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer

from medseg_site.shared.base.events import group_name
from medseg_site.shared.base.local_user import user_of_websocket
from medseg_site.shared.base.text import MAX_WHOLE_NUMBER
from models_app.models import SegmentationModel

NOT_FOUND = 4404


class ModelConsumer(AsyncJsonWebsocketConsumer):
    """Sends the events of one training. Messages from the client are ignored."""

    group = ""

    async def connect(self) -> None:
        pk = self.scope["url_route"]["kwargs"]["pk"]
        # No row has such an id, and it would make the name of the group too long.
        if pk > MAX_WHOLE_NUMBER:
            await self.accept()
            await self.close(code=NOT_FOUND)
            return
        self.group = group_name(SegmentationModel.KIND, pk)
        # The client joins the group before the state is read, so that it misses no change in between.
        await self.channel_layer.group_add(self.group, self.channel_name)
        state = await self._state(pk)
        await self.accept()
        if state is None:
            await self.close(code=NOT_FOUND)
        else:
            await self.send_json(state)

    async def disconnect(self, code: int) -> None:
        if self.group:
            await self.channel_layer.group_discard(self.group, self.channel_name)

    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        return

    async def job_event(self, event: dict[str, Any]) -> None:
        await self.send_json(event["message"])

    @database_sync_to_async
    def _state(self, pk: int) -> dict[str, Any] | None:
        user = user_of_websocket(self.scope)
        if user is None:
            return None
        model = SegmentationModel.objects.visible_to(user).filter(pk=pk).first()
        if model is None:
            return None
        return {
            "type": "status",
            "id": model.pk,
            "status": model.status,
            "progress": model.progress,
            "error": model.error,
            "attempt": model.attempt,
        }
