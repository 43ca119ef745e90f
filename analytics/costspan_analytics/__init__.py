"""costspan_analytics: why was it slow, and what did it cost, from what is in the store."""
