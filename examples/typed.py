"""Orders with types: what a client sends is checked field by field, and mypy knows what comes.

    python -m geventws examples.typed:app

A client sends {"item": "tea", "quantity": 2}. One that sends no quantity, or "two", is closed with 1007 and told which
field was wrong. Needs the extra ``msgspec``.
"""

from __future__ import annotations

import msgspec

import geventws
from geventws import DefaultWebSocketServerSession, MsgspecConverter

app = geventws.WebSockets(content_converter=MsgspecConverter())

PRICES = {"tea": 3.5, "cake": 4.25}


class Order(msgspec.Struct):
    """What a client sends."""

    item: str
    quantity: int = 1


class Receipt(msgspec.Struct):
    """What it gets."""

    item: str
    total: float


class Unknown(msgspec.Struct):
    """What it gets for something that there is not."""

    unknown: str


@app.route("/orders")
def take_orders(session: DefaultWebSocketServerSession) -> None:
    """Answers each order."""
    while True:
        order = session.receive_deserialized(Order)
        price = PRICES.get(order.item)
        if price is None:
            session.send_serialized(Unknown(order.item))
        else:
            session.send_serialized(Receipt(order.item, price * order.quantity))
