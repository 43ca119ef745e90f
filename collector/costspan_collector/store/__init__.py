"""ClickHouse: its tables, what is written to them, and how they are looked after."""
