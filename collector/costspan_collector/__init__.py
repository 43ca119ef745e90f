"""Takes OTLP spans and engine ledgers over HTTP, logs them durably, and writes them to ClickHouse, embedded or a server."""
