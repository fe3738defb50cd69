"""One message to many sessions."""

from geventws.topics.broadcasting import broadcast

__all__ = ["broadcast"]
