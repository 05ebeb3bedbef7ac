"""What several test suites share: a real server as a process, a proxy that cuts the line."""
