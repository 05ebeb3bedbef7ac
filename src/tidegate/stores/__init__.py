"""Where bytes go: one file per backend, each an implementation of `ports.DataStore`."""
