"""The embedded store: chDB, in this process, as it answers many at once and each only what it may see."""
