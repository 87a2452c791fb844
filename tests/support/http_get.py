"""What a URL answers, also when it is no 200."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from support.waiting import DEADLINE_S


@dataclass
class Answer:
    """An HTTP answer."""

    status: int
    text: str
    headers: http.client.HTTPMessage

    @property
    def json(self) -> Any:
        """The body, as JSON has it."""
        return json.loads(self.text)


def get(url: str, path: str = "", method: str = "GET", **headers: str) -> Answer:
    """Asks, and waits for the answer until a deadline."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE_S)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return Answer(response.status, response.read().decode(), response.headers)
    finally:
        connection.close()
