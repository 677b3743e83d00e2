"""The bundle server: takes teams' packages, checks them, builds the bundles of all, and hands them out.

Knows neither doors nor Airflow.
"""


class ServerError(Exception):
    """A bundle server cannot do what was asked of it."""
