"""The monitor: runs as they train, and what becomes of their dense features."""
