"""``python -m airflow_team_authz.cli``, if the program is not on PATH."""

from airflow_team_authz.cli import main

main()
