"""A running conversation: sessions, caches, batches of requests, and what a recording holds."""
