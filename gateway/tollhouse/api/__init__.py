"""What callers see: request checks, error envelopes, server-sent events."""
