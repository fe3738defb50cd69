"""gunicorn settings for a WebSocket application in production, as a start for your own.

gunicorn reads a file of this name in its working directory by itself. GUNICORN_CMD_ARGS and the command line win over
it:

    GUNICORN_CMD_ARGS="--bind 0.0.0.0:8080" gunicorn -c gunicorn.conf.py examples.chat:app
"""

import os

# ---- Where it listens

# The loopback, as a proxy stands in front; platforms that hand out a port in PORT expect it on all interfaces.
bind = [f"0.0.0.0:{os.environ['PORT']}"] if "PORT" in os.environ else ["127.0.0.1:8000"]

# A Unix socket spares a proxy on the same machine TCP and its limit of ports. The umask decides who may connect.
# bind = ["unix:/run/chat/gunicorn.sock"]
# umask = 0o007

# Connections the kernel holds while no worker accepts. After a restart all clients come back at once; Linux caps
# this at net.core.somaxconn.
backlog = 2048

# ---- Processes

# Serves HTTP as `gevent` does, and gives WebSockets their connections.
worker_class = "geventws.Worker"

# Instead, with what gunicorn has no setting for, here with its defaults:
# import geventws
# class worker_class(geventws.Worker):
#     handshake_timeout = 10  # seconds from the accept to the end of the first head, the TLS handshake included
#     max_websockets = None  # nine tenths of worker_connections; further ones get a 503
#     close_timeout = 5  # seconds that handlers have when the worker stops

# One process uses one core: one worker a core. What their sessions share goes by Redis: examples/chat.py shows how.
# Where sessions share something through the process's memory, it is 1.
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))

# Connections of one worker, idle WebSockets and plain HTTP together. A tenth is kept from WebSockets, so that health
# checks are answered when there are too many. At the limit those that wait for a request make room; where all are busy,
# new ones wait in the backlog. The hard limit of open files (ulimit -Hn) must be higher; the soft one is raised.
worker_connections = 10_000

# Leave it off: the application would be imported before gevent patches the standard library, and what it opens at
# import (a database, Redis) would be shared by all workers.
preload_app = False

# Replaces a worker after so many requests, against leaks. A WebSocket counts once, when it opens, and all of the
# worker's are then closed with 1012: leave it at 0, or set it high, with a jitter so that workers don't go together.
max_requests = 0
# max_requests = 100_000
# max_requests_jitter = 10_000

# A file in memory for the heartbeat: on a busy disk the heartbeat itself can block the worker.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None

# ---- Time

# Seconds without a heartbeat after which a worker is killed. No limit on how long a WebSocket lives: it only ends a
# worker whose code computes without yielding to gevent, with all its connections, and the log shows where it was.
timeout = 30

# Seconds that plain requests have to end when a worker stops or is replaced. WebSockets are closed at once, and their
# handlers have five seconds of it. What starts gunicorn (systemd, Kubernetes) must wait longer before it kills.
graceful_timeout = 30

# Seconds that a connection waits for its next request, and that a client has to send the head of it; 0 turns keep-alive
# off. The first head has handshake_timeout instead, and WebSockets have ping_interval and timeout of geventws.
keepalive = 5

# ---- Behind a proxy

# Whose X-Forwarded-Proto is believed (addresses or networks, "*" for any); it decides between ws and wss in the URLs
# that the application makes. A Unix socket's peer is always believed. REMOTE_ADDR stays the proxy's address: for the
# client's use Werkzeug's ProxyFix.
forwarded_allow_ips = os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1,::1")

# For a balancer that passes TCP on (HAProxy, AWS NLB) and tells the client's address in the PROXY protocol.
# proxy_protocol = "auto"
# proxy_allow_ips = "10.0.0.0/8"

# ---- Limits of a request

# gunicorn's own defaults. Handshakes meet them too: a token in the URL or large cookies beyond them get a 414 or 431.
limit_request_line = 4094
limit_request_fields = 100
limit_request_field_size = 8190

# ---- TLS without a proxy

# Browsers open wss:// only to a certificate they trust, and say nothing but 1006 where they don't.
# bind = ["0.0.0.0:443"]
# certfile = "/etc/ssl/chat/fullchain.pem"
# keyfile = "/etc/ssl/chat/privkey.pem"

# ---- Logs

# To standard output and standard error, for the supervisor to keep. The line of a WebSocket has status 101.
accesslog = "-"
errorlog = "-"
loglevel = "info"

# gunicorn's own format, and behind it how long it took in seconds (L, which starts anew after a day) and, for a
# WebSocket, its close code.
access_log_format = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s" %(L)s %({geventws.close_code}e)s'

# ---- Control

# gunicornc, gunicorn's control command, speaks to this socket. Its default path is one for all of a user's servers, and
# the last to start takes it over: give each its own.
control_socket_disable = True
# control_socket = "/run/chat/gunicorn.ctl"

# ---- The chat example


def on_starting(server):
    """Without a REDIS_URL examples/chat.py gets a Valkey of its own; no other application needs this."""
    if server.app.app_uri == "examples.chat:app":
        from examples import embedded_valkey

        embedded_valkey.share(server)


on_reload = on_starting
