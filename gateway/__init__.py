"""The web edge: what the world reaches of Mailhouse, and the stream behind it.

What is seen goes one way:

    app.py          routes; http.py reads requests and writes answers, openapi.py describes them
      api.py        events from shops and apps: events.py reads our form, segment.py Segment's; keys.py says who may
      clicks.py, webhooks.py, crm_webhooks.py, preferences.py, unsubscribes.py    everybody else's events
    appending.py    many requests, one commit: answered only when the stream has them on disk
    streams.py, redis_stream.py    the stream itself
    consuming.py    micro-batches out of the stream into raw.events, then to the handlers (triggers)

Unsubscribes and preferences do not wait for the consumer: the page says 'done' when the warehouse has the row.
"""
