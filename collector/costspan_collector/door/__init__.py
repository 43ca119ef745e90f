"""The door of the embedded store: ClickHouse's HTTP interface, as its clients speak it."""
