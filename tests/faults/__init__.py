"""Faults and abuse against running servers: real sockets, real workers, and honest clients beside them."""
