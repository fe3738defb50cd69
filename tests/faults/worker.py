"""``geventws.Worker`` set as FAULT_SERVER says, in JSON: {"handshake_timeout": 1}."""

from __future__ import annotations

import json
import os

import geventws


class Worker(geventws.Worker):
    """The worker under test."""


for _name, _value in json.loads(os.environ.get("FAULT_SERVER") or "{}").items():
    setattr(Worker, _name, _value)
