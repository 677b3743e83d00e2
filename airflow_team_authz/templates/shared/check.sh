#!/bin/sh
# Runs the checks of CI: all of them, or the named steps: `./check.sh tests gate`. It needs opa 1.22.2 or newer, regal,
# and the package airflow-team-authz with its extra `bundles`.
set -eu
cd "$(dirname "$0")"

format() {
    find . -name '*.rego' ! -path './.team-authz/*' ! -path './.regal/*' -exec opa fmt --fail --list {} +
}

# First the plain command. Then the strict check, by the schema of questions and the built-in functions that a policy may
# call. It leaves out Regal's rules, which call other functions.
types() {
    opa check .
    opa check --strict --ignore .regal \
        --schema .team-authz/schemas --capabilities .team-authz/capabilities.json .
}

# `opa test .` would also read workflows as data, and two workflows with the same key are a conflict.
tests() {
    opa test --ignore .github --fail-on-empty .
}

lint() {
    regal lint .
}

# In a team's repository, which has the packaged role table: every finding that keeps the package from publication, such
# as untested rules (`opa test --coverage` would include the packaged rules). In the platform's repository: rules that
# read a field that no question has, and rules in files that no engine loads.
gate() {
    if [ -d .team-authz/airflow/roles ]; then team-authz bundle check .; else team-authz doctor --rules --policy .; fi
}

for step in ${*:-format types tests lint gate}; do
    echo "== $step"
    "$step"
done
