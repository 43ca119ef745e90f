"""The write-ahead log, and what could not be written from it."""
