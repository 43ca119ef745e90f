"""costspan_dashboard: where the time and the money went, in a browser."""
