"""The intake: payloads from the network to the log."""
