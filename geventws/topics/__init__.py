"""One message to many sessions: to those that you name, or to all who are subscribed to a topic."""

from geventws.topics.broadcasting import broadcast
from geventws.topics.nouns import Gap, Member, Position, Presence, Subscribed
from geventws.topics.statistics import Statistics
from geventws.topics.topics import Topics

__all__ = ["Gap", "Member", "Position", "Presence", "Statistics", "Subscribed", "Topics", "broadcast"]
