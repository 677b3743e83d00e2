"""The doors: one module for each place where Airflow calls this package. Doors do not know each other."""


class DoorError(Exception):
    """A door cannot do what Airflow asked of it."""
