"""Where Airflow calls in. One module a door; doors know questions, identities and engines, not each other."""
