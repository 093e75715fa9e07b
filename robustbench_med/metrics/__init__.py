"""Metrics: values from kept libraries, with the project's conventions for what is undefined."""
