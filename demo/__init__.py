"""A multi-team Airflow at work: ``python -m demo``."""
