"""The bench: a suite is planned into cases, cases are executed into records, records are stored."""
