"""RFC 6455 and RFC 7692 as bytes in and bytes out: nothing here imports gevent or socket."""
