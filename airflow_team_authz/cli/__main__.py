"""``python -m airflow_team_authz.cli``, for where the program is not on PATH."""

from airflow_team_authz.cli import main

main()
