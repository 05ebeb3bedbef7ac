"""Where records, leases, segments and events live."""
