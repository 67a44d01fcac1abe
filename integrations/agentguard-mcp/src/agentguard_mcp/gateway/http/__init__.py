"""The HTTP side of a gateway: MCP's streamable HTTP for the gateway's clients.

Read the files in the order of one request. ``server.py`` listens with uvicorn. ``endpoint.py``
takes the request: ``asgi.py`` reads its body, ``headers.py`` holds its headers against the body,
``cors.py`` answers browsers, and ``admission.py`` says who may come (``bearer.py`` where each
request needs a token). ``sessions.py`` finds the session of the request, or begins one with a
server of its own. ``request_context.py`` keeps what came with the request until its call is
decided, and ``streams.py`` puts each message for the client on the stream of the right request.
``stream.py`` is one stream with the connection that reads it, ``replay.py`` keeps the streams for a
client whose connection broke, and ``server_sent_events.py`` writes the events to the connection.
``refusal.py`` has the statuses of what is refused, and ``settings.py`` the settings and the address
of the endpoint. Only ``server.py`` needs uvicorn.
"""
