"""Who is told of events: callables, webhooks, commands. Each is an `EventSink`."""
