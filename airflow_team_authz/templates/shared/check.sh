#!/bin/sh
# What CI checks: format, types against the schema of questions, tests, lint, and for a team what keeps its package from
# being published. Takes opa 1.22.2 or newer, regal, and the package airflow-team-authz with its extra `bundles`.
set -eu
cd "$(dirname "$0")"

find . -name '*.rego' ! -path './.team-authz/*' ! -path './.regal/*' -exec opa fmt --fail --list {} +
opa check --bundle --ignore .regal --strict --schema .team-authz/schemas --capabilities .team-authz/capabilities.json .
opa test --bundle --ignore .regal --fail-on-empty .
regal lint .
# A team's repository has the packaged role table beside it, the platform's has its own.
if [ -d .team-authz/airflow/roles ]; then
    team-authz bundle check .
fi
