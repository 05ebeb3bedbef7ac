"""Ready-made answers to who makes a request: tokens, JWTs, a service of the operator's own."""
